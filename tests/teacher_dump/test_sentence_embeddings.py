"""Embeddings of rows in a dump: pooled as options or modules.json say, equal to those of the model run by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from shared import Dump
from shared.dump.facts import Pooling, PoolingMode
from shared.errors import TeacherError, UsageError
from shared.models.sentence_folder import write_sentence_folder
from teacher_dump.engines.callable import CallableTeacher

TEXTS = [
    "the quick brown fox",
    "a lazy dog",
    "wizards box some jugs of liquor while the dog jumps over a fox",
    "",
    "fox",
]

TEXTS_AS_ROWS = [{"text": text} for text in TEXTS]


@pytest.fixture(scope="module")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher("encoder")


def embeddings(dump: Path) -> NDArray[np.float32]:
    return np.asarray(Dump(dump).vectors("embedding").sort("row").collect()["vector"].to_list(), np.float32)


@torch.inference_mode()
def by_hand(folder: Path, mode: str, normalized: bool, max_length: int = 64) -> NDArray[np.float64]:
    model, tokenizer, rows = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        if not inputs["input_ids"].numel():
            rows.append(np.zeros(model.config.hidden_size))
            continue
        states_LD = model(**inputs).last_hidden_state[0].numpy().astype(np.float64)
        row_D = {
            "mean": states_LD.mean(0),
            "cls": states_LD[0],
            "last": states_LD[-1],
            "max": states_LD.max(0),
        }[mode]
        rows.append(row_D / np.linalg.norm(row_D) if normalized else row_D)
    return np.asarray(rows)


@pytest.mark.parametrize("mode", get_args(PoolingMode))
@pytest.mark.parametrize("normalize", ["yes", "no"])
def test_options_decide(teacher: Path, make_dump: Any, mode: str, normalize: str) -> None:
    out = make_dump("encoder", teacher=teacher, data=TEXTS_AS_ROWS, hidden="none", pooling=mode, normalize=normalize)
    assert Dump(out).manifest.pooling == Pooling(mode=mode, normalized=normalize == "yes")
    assert np.allclose(embeddings(out), by_hand(teacher, mode, normalize == "yes"), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("mode", ["cls", "mean"])
def test_the_folder_decides_pooling_normalisation_and_length(
    make_teacher: Any, make_dump: Any, mode: PoolingMode
) -> None:
    folder = make_teacher("encoder")
    write_sentence_folder(folder, Pooling(mode=mode, normalized=True), 32, 6)
    out = make_dump("encoder", teacher=folder, data=TEXTS_AS_ROWS, hidden="none")
    manifest = Dump(out).manifest
    assert manifest.pooling == Pooling(mode=mode, normalized=True)
    assert manifest.options.max_length == 6
    assert np.allclose(embeddings(out), by_hand(folder, mode, True, max_length=6), rtol=2e-3, atol=2e-4)
    named = make_dump("encoder", teacher=folder, data=TEXTS_AS_ROWS, hidden="none", pooling="max")
    assert Dump(named).manifest.pooling == Pooling(mode="max")
    assert Dump(named).manifest.options.max_length == 64


def test_without_modules_the_mean_is_recorded_beside_hidden_states(teacher: Path, make_dump: Any) -> None:
    out = make_dump("encoder", teacher=teacher, data=TEXTS_AS_ROWS, hidden="last")
    dump = Dump(out)
    assert [signal.name for signal in dump.manifest.signals] == ["hidden.2", "embedding"]
    assert dump.manifest.pooling == Pooling()
    assert np.allclose(embeddings(out), by_hand(teacher, "mean", False), rtol=2e-3, atol=2e-3)
    assert not dump.verify()


def test_none_records_none(teacher: Path, make_dump: Any) -> None:
    out = make_dump("encoder", teacher=teacher, data=TEXTS_AS_ROWS, hidden="last", pooling="none")
    assert [signal.name for signal in Dump(out).manifest.signals] == ["hidden.2"]
    assert Dump(out).manifest.pooling is None


def test_int8_is_close(teacher: Path, make_dump: Any) -> None:
    out = make_dump("encoder", teacher=teacher, data=TEXTS_AS_ROWS, hidden="none", normalize="yes", pooled_codec="int8")
    found, expected = embeddings(out), by_hand(teacher, "mean", True)
    assert ((found - expected) ** 2).sum() / (expected**2).sum() < 1e-3


@pytest.mark.parametrize("model_type", ["modernbert", "distilbert", "roberta", "llama"])
def test_other_architectures_are_pooled_from_their_last_hidden_state(
    make_teacher: Any, make_dump: Any, model_type: str
) -> None:
    folder = make_teacher("encoder", model_type)
    rows = [row for row in TEXTS_AS_ROWS if row["text"] or model_type != "modernbert"]  # which takes no empty row
    out = make_dump("encoder", teacher=folder, data=rows, hidden="none", pooling="last")
    expected = [
        row_D for row_D, text in zip(by_hand(folder, "last", False), TEXTS, strict=True) if {"text": text} in rows
    ]
    assert np.allclose(embeddings(out), expected, atol=4e-3)


def test_a_callable_teacher_is_pooled_too(teacher: Path, make_dump: Any) -> None:
    model = AutoModel.from_pretrained(teacher)
    given = CallableTeacher(_Hidden(model), AutoTokenizer.from_pretrained(teacher), name="mine", version="1")
    out = make_dump("encoder", teacher=given, data=TEXTS_AS_ROWS, hidden="none", pooling="cls")
    assert np.allclose(embeddings(out), by_hand(teacher, "cls", False), rtol=2e-3, atol=2e-3)


def test_a_teacher_without_hidden_states_is_refused_with_the_option_that_helps(teacher: Path, make_dump: Any) -> None:
    given = CallableTeacher(lambda **_: {}, AutoTokenizer.from_pretrained(teacher), name="mine", version="1")
    with pytest.raises(TeacherError, match=r"mine does not give the hidden states .* give --pooling none"):
        make_dump("encoder", teacher=given, data=TEXTS_AS_ROWS, hidden="none")


class _Hidden(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, Any]:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        return {"hidden_states": output.hidden_states}


@pytest.mark.parametrize(
    ("task", "options", "sentence"),
    [
        ("encoder", {"pooling": "sum"}, "--pooling 'sum': use auto, none, mean, cls, last, max"),
        ("encoder", {"normalize": "maybe"}, "--normalize 'maybe': use auto, yes, no"),
        ("encoder", {"pooled_codec": "zip"}, "--pooled-codec 'zip': use float16, int8, int4"),
        ("encoder", {"pooling": "none", "normalize": "yes"}, "--normalize is for embeddings of rows, but none"),
        ("encoder", {"pooling": "none", "hidden": "none"}, "records vectors only; say which"),
        ("masked-lm", {"pooling": "mean"}, "--pooling mean: the task masked-lm has no embeddings of rows"),
        ("masked-lm", {"pooled_codec": "int8"}, "--pooled-codec is for embeddings of rows, but none are recorded"),
    ],
)
def test_wrong_options_are_refused(
    make_teacher: Any, make_dump: Any, task: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        make_dump(task, data=TEXTS_AS_ROWS, **options)


def test_a_teacher_with_a_dense_layer_is_refused_unless_a_pooling_is_named(make_teacher: Any, make_dump: Any) -> None:
    folder = make_teacher("encoder")
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    entries = ", ".join(f'{{"type": "sentence_transformers.models.{kind}", "path": "{path}"}}' for kind, path in kinds)
    (folder / "modules.json").write_text(f"[{entries}]")
    with pytest.raises(TeacherError, match="Dense"):
        make_dump("encoder", teacher=folder, data=TEXTS_AS_ROWS, hidden="none")
    make_dump("encoder", teacher=folder, data=TEXTS_AS_ROWS, hidden="none", pooling="mean")


@pytest.mark.parametrize("mode", get_args(PoolingMode))
def test_the_library_itself_gives_the_same_embeddings(make_teacher: Any, make_dump: Any, mode: PoolingMode) -> None:
    library = pytest.importorskip("sentence_transformers")
    folder = make_teacher("encoder")
    write_sentence_folder(folder, Pooling(mode=mode, normalized=mode != "max"), 32, 8)
    out = make_dump("encoder", teacher=folder, data=TEXTS_AS_ROWS, hidden="none")
    expected = library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert np.allclose(embeddings(out), expected, rtol=1e-3, atol=1e-3)
