"""`dump --embeddings`: the teacher's word embeddings travel in `weights/` and are verified there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

from shared import Dump, DumpError, TeacherError, UsageError
from teacher_dump.annotate import annotate, prepare
from teacher_dump.cli import app
from teacher_dump.estimate import estimate
from teacher_dump.request import Request
from teacher_dump.tensor_files.embeddings import embeddings
from tests.hand_edits import edit_manifest

FILE = "weights/embeddings.safetensors"


@pytest.fixture(scope="module")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher("sequence-classification")


@pytest.fixture(scope="module")
def made(make_dump: Callable[..., Path], teacher: Path) -> Path:
    return make_dump(teacher=teacher, embeddings=True)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_the_teachers_word_embeddings_are_kept_in_float16(made: Path, teacher: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    found_VD = Dump(made).word_embeddings()
    assert found_VD.dtype == torch.float16
    assert torch.equal(found_VD, model.get_input_embeddings().weight.half())
    assert (made / FILE).stat().st_size == pytest.approx(found_VD.nbytes, abs=200)
    manifest = json.loads((made / "manifest.json").read_text())
    (entry,) = manifest["tensor_files"].values()
    assert entry.keys() == {"tensors", "bytes", "sha256", "facts"}, "and no path"
    assert "word embeddings (1 tensor, 8.19 KB, rows 128, width 32, dtype fp16)" in (made / "README.md").read_text()


def test_rows_beyond_the_tokenizer_are_kept_with_the_others(make_dump: Callable[..., Path], make_teacher: Any) -> None:
    teacher = make_teacher("causal-lm")
    dump = Dump(make_dump("causal-lm", teacher=teacher, embeddings=True))
    model = AutoModelForCausalLM.from_pretrained(teacher)
    assert dump.manifest.tokenizer.size < dump.manifest.vocabulary == len(dump.word_embeddings())
    assert torch.equal(dump.word_embeddings(), model.get_input_embeddings().weight.half())


def test_a_dump_without_them_has_no_file_and_says_how_to_get_one(make_dump: Callable[..., Path]) -> None:
    dump = Dump(make_dump())
    assert not (dump.path / "weights").exists()
    with pytest.raises(DumpError, match=f"{dump.path.name}.*--embeddings"):
        dump.word_embeddings()
    assert dump.verify() == []


def test_damaged_swapped_and_missing_embeddings_are_found(copy: Path) -> None:
    assert Dump(copy).verify() == []
    tensors = load_file(copy / FILE)
    tensors["embeddings"][5, 3] += 1
    save_file(tensors, copy / FILE)
    (damage,) = Dump(copy).verify()
    assert FILE in damage
    assert "SHA-256 differs" in damage
    (copy / FILE).write_bytes((copy / FILE).read_bytes()[:100])
    with pytest.raises(DumpError, match=f"{FILE}: damaged"):
        Dump(copy).word_embeddings()
    (copy / FILE).unlink()
    with pytest.raises(DumpError, match=f"{FILE}: missing"):
        Dump(copy).word_embeddings()
    Dump(copy).require_complete()


def test_a_manifest_can_point_to_no_other_file(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    files = manifest["tensor_files"]
    edit_manifest(copy, tensor_files={"embeddings": files["embeddings"] | {"file": "../../elsewhere.safetensors"}})
    with pytest.raises(DumpError, match=r"tensor_files\.embeddings\.file"):
        Dump(copy)
    edit_manifest(copy, tensor_files={"../../elsewhere": files["embeddings"]})
    with pytest.raises(DumpError, match=r"there is no tensor file '\.\./\.\./elsewhere'; there are: embeddings, "):
        Dump(copy)


def test_the_same_command_goes_on_and_one_without_the_option_is_refused(copy: Path, teacher: Path, made: Path) -> None:
    data = made.parent / "corpus.jsonl"
    shard = next((copy / "shards").glob("*00001*.parquet"))
    for path in (copy / "shards").glob("*00001*"):
        path.unlink()
    request = Request(
        str(teacher), "sequence-classification", (str(data),), copy, max_length=64, shard_rows=16, device="cpu"
    )
    with pytest.raises(UsageError, match=r"embeddings\.facts\.rows: the dump has 128, this command asks for none"):
        annotate(prepare(request))
    annotate(prepare(Request(**{**request.__dict__, "embeddings": True})))
    assert shard.read_bytes() == (made / "shards" / shard.name).read_bytes()


def test_the_dry_run_counts_them(teacher: Path, made: Path, tmp_path: Path) -> None:
    def bytes_of(**options: Any) -> int:
        data = (str(made.parent / "corpus.jsonl"),)
        request = Request(
            str(teacher), "sequence-classification", data, tmp_path / "x", max_length=64, device="cpu", **options
        )
        return estimate(prepare(request)).bytes

    assert bytes_of(embeddings=True) - bytes_of() == 128 * 32 * 2


def test_the_command_line_says_that_they_are_kept(teacher: Path, made: Path, tmp_path: Path) -> None:
    arguments = ["--teacher", str(teacher), "--task", "sequence-classification", "--embeddings", "--max-length", "64"]
    arguments += ["--data", str(made.parent / "corpus.jsonl"), "--out", str(tmp_path / "dump")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "weights  word embeddings (1 tensor, 8.19 KB, rows 128, width 32, dtype fp16)" in result.output
    assert (tmp_path / "dump" / FILE).exists()


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_values_that_float16_cannot_hold_are_refused(value: float) -> None:
    weight_VD = torch.zeros(4, 3)
    weight_VD[2, 1] = value
    engine: Any = SimpleNamespace(word_embeddings=lambda: weight_VD)
    request = Request("teacher", "encoder", ("corpus",), "out", embeddings=True)
    with pytest.raises(TeacherError, match="token 2"):
        embeddings(request, engine)
