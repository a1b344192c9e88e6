"""An engine from outside: a teacher that is a table of scores by token, from a dump to a student's scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from shared import Dump
from shared.dump.facts import Teacher as TeacherFacts
from shared.dump.signals import HIDDEN, SignalKey
from shared.errors import TeacherError, UsageError
from shared.text.columns import ScoredColumns
from student_train import distill
from student_train.scoring.evaluate import evaluate
from teacher_dump.engines import ENGINES
from teacher_dump.engines.base import Engine, TeacherDescription, TeacherOutputs, Wanted
from teacher_dump.engines.batch import Batch
from tests.conftest import LABELS
from tests.student_train.runs import KL, TRANSFORMER, recipe

TASK = "sequence-classification"
WIDTH = 6


@dataclass(frozen=True)
class TableDescription(TeacherDescription):
    seed: int

    def load(self) -> "TableEngine":
        return TableEngine(self)


class TableEngine(Engine):
    """A token has a vector of its own, in layer 0 alone, and a row's logits are the first numbers of their mean."""

    architecture, dtype, pad_token_id = "Table", "fp32", 0

    def __init__(self, description: TableDescription) -> None:
        self.device, self.seed = torch.device("cpu"), description.seed
        self.vocabulary = len(description.tokenizer)
        self.table_VD = torch.randn(self.vocabulary, WIDTH, generator=torch.Generator().manual_seed(self.seed))

    def facts(self) -> TeacherFacts:
        return TeacherFacts(
            name="table",
            revision=None,
            architecture="Table",
            parameters=self.table_VD.numel(),
            fingerprint=f"table {self.seed}",
        )

    def offers(self) -> Mapping[str, Sequence[int | None]]:
        return {HIDDEN: (0,)}

    def widths(self, keys: Sequence[SignalKey]) -> list[int]:
        return [WIDTH for _ in keys]

    def run(self, batch: Batch, wanted: Wanted) -> TeacherOutputs:
        states_TD = self.table_VD[batch.inputs["input_ids"].flatten()[torch.from_numpy(batch.token_index())]]
        logits_BC = torch.stack([row_LD.mean(0)[: len(LABELS)] for row_LD in states_TD.split(batch.lengths)])
        at = None if wanted.distribution is None else lambda index_N: logits_BC[index_N]
        return TeacherOutputs(at, None, dict.fromkeys(wanted.keys, states_TD))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    monkeypatch.setitem(
        ENGINES, "table", lambda request, task: TableDescription(tiny_tokenizer, LABELS, 64, int(request.teacher))
    )


@pytest.fixture
def dump(table: None, make_dump: Callable[..., Path], toy_rows: Any) -> Path:
    return make_dump(TASK, teacher="3", engine="table", data=toy_rows(TASK, 40), hidden="last", batch_tokens=60)


def expected(tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    table_VD = torch.randn(len(tokenizer), WIDTH, generator=torch.Generator().manual_seed(3))
    return table_VD[tokenizer(text, truncation=True, max_length=64, return_tensors="pt")["input_ids"][0]]


def test_the_dump_holds_what_the_engine_gives(
    dump: Path, toy_rows: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    opened = Dump(dump)
    assert opened.verify() == []
    assert opened.manifest.teacher.architecture == "Table"
    vectors, logits = opened.vectors("hidden.0").collect(), opened.positions().sort("row").collect()
    for number, row in enumerate(toy_rows(TASK, 40)):
        states_LD = expected(tiny_tokenizer, row["text"])
        found = vectors.filter(pl.col("row") == number).sort("position")["vector"].to_list()
        np.testing.assert_allclose(found, states_LD, atol=2e-3)
        log_probs = states_LD.mean(0)[: len(LABELS)].log_softmax(0)
        np.testing.assert_allclose(logits["log_probs"][number].to_list(), log_probs, atol=1e-5)


def test_from_a_dump_to_a_students_scores(dump: Path, tmp_path: Path) -> None:
    hidden = {"kind": "hidden", "teacher_layer": 0, "student_layer": -1}
    assert distill.run(recipe(tmp_path / "student", TRANSFORMER, KL, hidden, dump=dump), resume=False).steps == 3
    corpus = str(dump.parent / "corpus.jsonl")
    report = evaluate(tmp_path / "student", [corpus], ScoredColumns(), dump=dump, device="cpu").as_dict()
    assert report["rows"] == 40
    assert 0 <= report["agreement"] <= 1


def test_a_dump_never_mixes_its_teachers(dump: Path, make_dump: Callable[..., Path]) -> None:
    again = {"out": dump, "data": dump.parent / "corpus.jsonl", "hidden": "last", "engine": "table"}
    before = {path: path.read_bytes() for path in (dump / "shards").iterdir()}
    make_dump(TASK, teacher="3", **again)
    assert {path: path.read_bytes() for path in (dump / "shards").iterdir()} == before
    with pytest.raises(UsageError, match=r"teacher\.fingerprint: the dump has table 3, this command asks for table 4"):
        make_dump(TASK, teacher="4", **again)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"hidden": "1"}, UsageError, r"--hidden 1: this teacher has layers 0 .*to 0"),
        ({"relations": "last"}, TeacherError, r"signal 'queries.1': Table does not give its queries of attention"),
        ({"embeddings": True}, TeacherError, "--embeddings: Table does not give its word embeddings"),
        ({"max_length": 65}, UsageError, "this teacher takes at most 64 tokens"),
        ({"engine": "chair"}, UsageError, "unknown engine 'chair'; there are: transformers, callable, table"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_more_than_it_gives_is_refused(
    table: None, make_dump: Callable[..., Path], options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        make_dump(TASK, teacher="3", **{"engine": "table", "data": [{"text": "fox"}]} | options)
