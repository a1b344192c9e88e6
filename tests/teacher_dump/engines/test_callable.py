"""A torch module or a function of one's own as a teacher: what it may return, what it must say, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from shared import Dump
from shared.errors import LecternError, TeacherError, UsageError
from teacher_dump.engines import devices
from teacher_dump.engines.callable import CallableTeacher
from tests.conftest import LABELS

WIDTH = 8
ROWS = [{"text": text} for text in ("the quick brown fox", "some jugs", "a lazy dog while seven wizards box", "fox")]
TASK = "sequence-classification"


class Bag(nn.Module):
    """A classifier of the mean of a row's embeddings, which padding must be no part of."""

    def __init__(self, classes: int = len(LABELS), seed: int = 0, entries: int = 128) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embeddings, self.head = nn.Embedding(entries, WIDTH), nn.Linear(WIDTH, classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        states_BLD = self.dropout(self.embeddings(input_ids))
        mask_BL1 = attention_mask[..., None]
        logits_BC = self.head((states_BLD * mask_BL1).sum(1) / mask_BL1.sum(1))
        return {"logits": logits_BC, "hidden_states": (states_BLD, states_BLD.tanh())}


class Tagger(Bag):
    """Logits for every token."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.head(self.embeddings(input_ids))


@pytest.fixture
def teacher(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., CallableTeacher]:
    """teacher(model, **what it says of itself)"""

    def make(model: Callable[..., Any], **facts: Any) -> CallableTeacher:
        return CallableTeacher(model, tiny_tokenizer, **{"label_names": LABELS} | facts)

    return make


Make = Callable[..., CallableTeacher]


def functions() -> dict[str, Callable[..., Any]]:
    """The same classifier in every shape that a teacher may have."""
    bag = Bag().eval()

    def of(ids: Tensor, mask: Tensor) -> Any:
        return bag(ids, mask)

    return {
        "a module": Bag(),
        "a dict": lambda input_ids, attention_mask: of(input_ids, attention_mask),
        "an object": lambda input_ids, attention_mask: SimpleNamespace(**of(input_ids, attention_mask)),
        "any arguments": lambda **inputs: of(inputs["input_ids"], inputs["attention_mask"]),
    }


@pytest.mark.parametrize("shape", functions())
def test_every_shape_of_a_teacher_gives_the_same_values(shape: str, teacher: Make, make_dump: Any) -> None:
    made = teacher(functions()[shape], name="bag", version="1")
    dump = Dump(make_dump(teacher=made, data=ROWS, hidden="all", batch_tokens=25))
    bag = Bag().eval()
    positions, vectors = dump.positions().sort("row").collect(), dump.vectors("hidden.1").collect()
    for number, row in enumerate(ROWS):
        ids = made.tokenizer(row["text"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            found = bag(ids, torch.ones_like(ids))
        log_probs = found["logits"][0].log_softmax(-1)
        np.testing.assert_allclose(positions["log_probs"][number].to_list(), log_probs, atol=1e-5)
        states = vectors.filter(pl.col("row") == number).sort("position")["vector"].to_list()
        np.testing.assert_allclose(states, found["hidden_states"][1][0], atol=1e-3)


def test_one_tensor_is_the_logits(teacher: Make, make_dump: Any) -> None:
    rows = [{"tokens": row["text"].split(), "tags": None} for row in ROWS]
    tagger = Tagger().eval()
    dump = Dump(make_dump("token-classification", teacher=teacher(tagger), data=rows))
    positions = dump.positions().filter(pl.col("row") == 2).sort("position").collect()
    ids = torch.tensor(dump.scan().filter(pl.col("row") == 2).collect()["input_ids"][0].to_list())
    with torch.no_grad():
        log_probs = tagger(ids[positions["position"].to_list()], None).log_softmax(-1)
    np.testing.assert_allclose(positions["log_probs"].to_list(), log_probs, atol=1e-5)


@pytest.mark.parametrize("task", ["masked-lm", "causal-lm"])
def test_a_vocabularys_logits_go_through_slices_and_codecs(
    task: str, teacher: Make, make_dump: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that looks at each token alone, so that it is causal too."""
    tagger = Tagger(classes=128).eval()
    options = {"data": ROWS, "top_k": 5, "levels": 60_000}
    whole = make_dump(task, teacher=teacher(tagger), **options)
    monkeypatch.setattr(devices, "SLICE_VALUES", {"cpu": 1})
    monkeypatch.setattr(devices, "FEWEST_POSITIONS", 2)
    dump = Dump(make_dump(task, teacher=teacher(tagger), **options))
    assert dump.manifest.vocabulary == 128
    frame = dump.positions().collect()
    assert frame.equals(Dump(whole).positions().collect())
    with torch.no_grad():
        logits_NV = tagger(torch.tensor(frame["token_id"].to_list()), None)
    log_probs, ids = logits_NV.log_softmax(-1).topk(5)
    assert frame["ids"].to_list() == ids.tolist()
    np.testing.assert_allclose(frame["log_probs"].to_list(), log_probs, atol=1e-3)
    measured = Dump(make_dump(task, teacher=teacher(tagger), data=ROWS)).manifest.measured["distribution"]
    assert measured["rounding_kl"] < 0.01


def test_token_types_are_given_to_whoever_has_a_parameter_for_them(teacher: Make, make_dump: Any) -> None:
    seen: list[Tensor] = []

    def typed(input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        seen.extend([] if token_type_ids is None else [token_type_ids])
        return torch.zeros(len(input_ids), len(LABELS))

    rows = [{"text": "fox jumps", "pair": "a dog"}]
    made = teacher(typed, name="typed", version="1")
    make_dump(teacher=made, data=rows, pair_column="pair")
    assert [types.unique().tolist() for types in seen] == [[0, 1]]
    make_dump(teacher=teacher(Bag()), data=rows, pair_column="pair")


def test_a_module_is_run_in_evaluation_mode_and_in_its_own_type(teacher: Make, make_dump: Any) -> None:
    half = Bag().to(torch.bfloat16).train()
    manifest = Dump(make_dump(teacher=teacher(half), data=ROWS)).manifest
    assert not half.training
    assert manifest.options.dtype == "bf16"
    assert manifest.teacher.architecture == manifest.teacher.name == "Bag"
    assert manifest.teacher.parameters == sum(each.numel() for each in half.parameters())


# --- a dump never mixes ----------------------------------------------------------------------------------------------


def test_modules_are_told_apart_by_weights_and_class(teacher: Make, make_dump: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": ROWS, "out": tmp_path / "dump"}
    make_dump(teacher=teacher(Bag()), **options)
    make_dump(teacher=teacher(Bag(), name="of another name"), **options)

    class Other(Bag):
        pass

    for other in (teacher(Bag(seed=1)), teacher(Other()), teacher(Bag(), version="2")):
        with pytest.raises(UsageError, match=r"teacher\.fingerprint: the dump has"):
            make_dump(teacher=other, **options)


def test_functions_are_told_apart_by_name_and_version(teacher: Make, make_dump: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": ROWS, "out": tmp_path / "dump"}
    first, second = (functions()["a dict"] for _ in range(2))
    make_dump(teacher=teacher(first, name="bag", version="1"), **options)
    make_dump(teacher=teacher(second, name="bag", version="1"), **options)
    assert Dump(tmp_path / "dump").manifest.teacher.revision == "1"
    for facts in ({"name": "bag", "version": "2"}, {"name": "sack", "version": "1"}):
        with pytest.raises(UsageError, match=r"teacher\.fingerprint: the dump has"):
            make_dump(teacher=teacher(second, **facts), **options)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "options", "sentence"),
    [
        ({"label_names": None}, {}, "the task sequence-classification needs label_names of this teacher"),
        ({}, {"revision": "main"}, "--revision is for teachers that are loaded from a folder or a hub"),
        ({}, {"device_map": "auto"}, "--device-map is for teachers that are loaded from a folder or a hub"),
        ({}, {"dtype": "fp16"}, "--dtype fp16: this teacher computes in fp32; convert it yourself"),
        ({"longest_row": 16}, {"max_length": 17}, "--max-length 17: this teacher takes at most 16 tokens"),
        ({"label_names": ("a", "b")}, {}, "Bag has 3 logits for the 2 labels a, b; there must be one for each"),
        ({}, {"relations": "last"}, r"signal 'queries\.1': Bag does not give its queries of attention, but hidden"),
        ({}, {"embeddings": True}, "--embeddings: Bag does not give its word embeddings"),
        ({}, {"hidden": "2"}, r"--hidden 2: this teacher has layers 0 \(the embeddings\) to 1"),
        ({}, {"engine": "transformers"}, "the engine 'transformers' loads a folder or a hub id"),
    ],
)
def test_what_a_module_cannot_have(
    facts: dict[str, Any], options: dict[str, Any], sentence: str, teacher: Make, make_dump: Any
) -> None:
    with pytest.raises(LecternError, match=sentence):
        make_dump(teacher=teacher(Bag(), **facts), data=ROWS, **options)


@pytest.mark.parametrize("facts", [{}, {"name": "bag"}, {"version": "1"}], ids=str)
def test_a_function_without_name_and_version_is_refused(facts: dict[str, Any], teacher: Make, make_dump: Any) -> None:
    with pytest.raises(UsageError, match=r"not a torch module, .* give it a name and a version"):
        make_dump(teacher=teacher(functions()["a dict"], **facts), data=ROWS)


def test_all_logits_of_a_vocabulary_are_refused(teacher: Make, make_dump: Any) -> None:
    with pytest.raises(TeacherError, match="--exact: Tagger gives logits, but not the states and the output proj"):
        make_dump("masked-lm", teacher=teacher(Tagger(classes=128)), data=ROWS, exact=True)


def test_a_folder_is_no_callable(make_dump: Any) -> None:
    with pytest.raises(UsageError, match="teacher 'models/bag': the engine 'callable' runs a CallableTeacher"):
        make_dump(teacher="models/bag", data=ROWS, engine="callable")


RETURNED: dict[str, tuple[str, Callable[[Tensor], Any], str]] = {
    "nothing": (
        TASK,
        lambda ids: None,
        "returned logits as NoneType, .* needs a floating-point tensor .rows, classes.",
    ),
    "no logits": (TASK, lambda ids: {"hidden_states": ()}, "returned logits as NoneType"),
    "a list": (TASK, lambda ids: {"logits": [[0.0] * 3] * len(ids)}, "returned logits as list"),
    "one a token": (TASK, lambda ids: torch.zeros(*ids.shape, 3), r"as \(2, 3, 3\) of torch.float32"),
    "one a row": ("token-classification", lambda ids: torch.zeros(len(ids), 3), r"\[rows, tokens, classes\], here"),
    "whole numbers": (TASK, lambda ids: torch.zeros(len(ids), 3, dtype=torch.int64), r"\(2, 3\) of torch.int64"),
    "states of rows": (
        TASK,
        lambda ids: {"logits": torch.zeros(len(ids), 3), "hidden_states": [torch.zeros(len(ids), 8)]},
        r"returned hidden_states\[0\] as \(2, 8\)",
    ),
    "too few ids": ("masked-lm", lambda ids: torch.zeros(*ids.shape, 7), "has 7 logits, fewer than its tokenizer's"),
    "what comes": (
        "causal-lm",
        lambda ids: ids.flip(1).cumsum(1).flip(1)[..., None].float() * torch.arange(128),
        "sees the tokens that it should predict",
    ),
}


@pytest.mark.parametrize("what", RETURNED)
def test_what_it_should_not_have_returned_is_named(what: str, teacher: Make, make_dump: Any) -> None:
    task, give, sentence = RETURNED[what]
    made = teacher(lambda input_ids, attention_mask: give(input_ids), name="f", version="1")
    rows = [{"tokens": row["text"].split()} for row in ROWS] if task == "token-classification" else ROWS
    with pytest.raises(TeacherError, match=f"the teacher f .*{sentence}|the teacher f {sentence}"):
        make_dump(task, teacher=made, data=rows)


def test_hidden_states_that_it_does_not_give_are_refused(teacher: Make, make_dump: Any) -> None:
    made = teacher(Tagger())
    rows = [{"tokens": row["text"].split()} for row in ROWS]
    for asked in ("last", "all", "3"):
        with pytest.raises(TeacherError, match=r"signal 'hidden.0': Tagger does not give its hidden states; leave"):
            make_dump("token-classification", teacher=made, data=rows, hidden=asked)


def test_an_encoder_need_not_give_logits(teacher: Make, make_dump: Any) -> None:
    class Encoder(Bag):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return {"hidden_states": [self.embeddings(input_ids)]}

    made = replace(teacher(Encoder()), label_names=None)
    dump = Dump(make_dump("encoder", teacher=made, data=ROWS, hidden="last"))
    assert dump.vectors("hidden.0").collect()["vector"].list.len().unique().to_list() == [WIDTH]
