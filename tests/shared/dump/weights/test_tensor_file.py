"""Files of tensors that a dump keeps once: what is written is read, and anything else is refused."""

from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from shared import DumpError
from shared.dump.codecs.constants import fingerprint
from shared.dump.facts import Frozen
from shared.dump.versions import upgraded
from shared.dump.weights.safetensors_file import write_tensors
from shared.dump.weights.tensor_file import TensorFile, TensorFileName

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool)


@st.composite
def tensors(draw: Any) -> dict[str, Tensor]:
    names = draw(st.lists(st.text('abé."_0', min_size=1, max_size=5), max_size=6, unique=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shapes = st.lists(st.integers(0, 3), max_size=3)
    drawn = {}
    for name in names:
        values = torch.randn(draw(shapes), generator=generator) * 10
        drawn[name] = values.to(draw(st.sampled_from(DTYPES)))
    return drawn


def written(content: Mapping[str, Tensor]) -> bytes:
    file = BytesIO()
    write_tensors(file, content)
    return file.getvalue()


@given(tensors())
def test_what_is_written_is_what_safetensors_reads(content: dict[str, Tensor]) -> None:
    found = load(written(content))
    assert found.keys() == content.keys()
    for name, values in content.items():
        assert found[name].dtype == values.dtype
        assert torch.equal(found[name], values)
    assert fingerprint(found) == fingerprint(content)


def test_the_bytes_are_those_that_safetensors_itself_writes() -> None:
    content = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(2.0)}
    assert written(content) == save(content)


def test_a_transposed_tensor_is_written_as_it_looks() -> None:
    content = {"a": torch.arange(6.0).view(2, 3).T}
    assert torch.equal(load(written(content))["a"], content["a"])


class OneByOne(Mapping[str, Tensor]):
    """Makes its tensors when they are looked up."""

    def __getitem__(self, name: str) -> Tensor:
        return torch.full((4,), float(name))

    def __iter__(self) -> Iterator[str]:
        return iter(["1", "2"])

    def __len__(self) -> int:
        return 2


def test_tensors_may_be_made_when_they_are_looked_up() -> None:
    file = TensorFile.of(OneByOne(), dtype="fp32", config={"a": 1})
    assert (file.tensors, file.bytes, file.facts) == (2, 32, {"dtype": "fp32", "config": {"a": 1}})
    again = load(written(file.unwritten()))
    assert again["2"].tolist() == [2.0] * 4
    file.check(again)
    assert file.describe("embeddings") == "word embeddings (2 tensors, 32 B, dtype fp32)"


@pytest.mark.parametrize("spoilt", [{"1": torch.ones(4)}, {"1": torch.ones(4), "2": torch.ones(4)}, {}])
def test_other_tensors_are_refused(spoilt: dict[str, Tensor]) -> None:
    with pytest.raises(DumpError, match="not the tensors that the manifest describes"):
        TensorFile.of(OneByOne()).check(spoilt)


def test_what_was_read_from_a_manifest_has_no_tensors() -> None:
    file = TensorFile.model_validate(TensorFile.of(OneByOne()).model_dump())
    assert file == TensorFile.of(OneByOne())
    with pytest.raises(DumpError, match="have not been read"):
        file.unwritten()


@pytest.mark.parametrize("name", ["../teacher", "", "shards", "teacher.safetensors"])
def test_a_name_that_the_table_lacks_is_refused(name: str) -> None:
    class Files(Frozen):
        files: dict[TensorFileName, TensorFile]

    with pytest.raises(ValueError, match="there is no tensor file"):
        Files(files={name: TensorFile.of({})})


@pytest.mark.parametrize("embeddings", [3, [], {}, {"rows": 2}, {"rows": 1, "width": "x", "constants_sha256": "y"}])
def test_word_embeddings_of_an_earlier_version_that_make_no_sense_are_left_to_the_manifests_checks(
    embeddings: Any,
) -> None:
    new = upgraded({"format_version": 6, "embeddings": embeddings})
    with pytest.raises(ValueError, match="validation error"):
        TensorFile.model_validate(new["tensor_files"]["embeddings"])


def test_word_embeddings_of_an_earlier_version_are_a_tensor_file(tmp_path: Path) -> None:
    old = {"format_version": 6, "embeddings": {"rows": 3, "width": 5, "constants_sha256": "0" * 64}}
    new = upgraded(old)
    assert new.keys() == {"format_version", "tensor_files"}
    file = TensorFile.model_validate(new["tensor_files"]["embeddings"])
    assert (file.tensors, file.bytes, file.sha256) == (1, 30, "0" * 64)
    assert file.facts == {"rows": 3, "width": 5, "dtype": "fp16"}
    assert upgraded({"format_version": 6, "embeddings": None}) == {"format_version": 6, "tensor_files": {}}
