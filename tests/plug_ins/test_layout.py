"""A layout from outside, through the table alone: every second token, from a dump to a student's scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from shared import Dump
from shared.dump.inspection import readable_rows, spreads, teacher_accuracy
from shared.dump.layouts import LAYOUTS, Field, Layout, Places
from shared.dump.rowgroup import Flat, Int32, Offsets, RowGroup
from shared.errors import DumpError
from shared.text.columns import ScoredColumns
from shared.text.examples import Example
from shared.text.tasks import TASKS
from shared.text.tasks.causal_lm import CausalLM
from shared.text.tokenized import TokenizedRow, Tokenizing
from student_train import distill
from student_train.data.batches import in_order
from student_train.data.sources import DumpSource
from student_train.scoring import evaluate as evaluation
from student_train.scoring.evaluate import evaluate
from tests.student_train.runs import GOLD, KL, TRANSFORMER, recipe

TASK = "every-second-lm"


class EverySecond(Layout):
    """At tokens 0, 2, 4, ..., each about the token that follows."""

    name = "every-second"
    place = "one for each second token: the distribution after token t is that of token t + 1"
    gold_title = "next"

    def fields(self, labelled: bool) -> tuple[Field, ...]:
        return ()

    def pack(self, group: RowGroup, labelled: bool) -> dict[str, Flat]:
        return {}

    def unpack(self, columns: Mapping[str, Flat], labelled: bool, token_offsets: Offsets, input_ids: Int32) -> Places:
        counts = np.diff(token_offsets) // 2
        offsets = np.concatenate([[0], np.cumsum(counts)])
        within = 2 * (np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts))
        return Places(offsets, within.astype(np.int32), input_ids[np.repeat(token_offsets[:-1], counts) + within + 1])

    def per_position(self, labelled: bool) -> dict[str, pl.Expr]:
        ids = pl.col("input_ids")
        positions = pl.int_ranges(0, ids.list.len().cast(pl.Int64) - 1, 2, dtype=pl.Int32)
        return {
            "position": positions,
            "token_id": ids.list.gather(positions),
            "label": ids.list.gather(positions + 1),
        }


class EverySecondLM(CausalLM):
    """Causal language modelling, at every second token."""

    name = TASK
    layouts = {None: "every-second"}  # noqa: RUF012

    def tokenize(self, how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
        rows = super().tokenize(how, examples, first_row)
        return [replace(row, positions=row.positions[::2], labels=row.labels[::2]) for row in rows]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LATENCY_SECONDS", 0.0)
    monkeypatch.setitem(LAYOUTS, "every-second", EverySecond())
    monkeypatch.setitem(TASKS, TASK, EverySecondLM())


@pytest.fixture(scope="module")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher("causal-lm")


@pytest.fixture(scope="module")
def rows(texts: list[str]) -> list[str]:
    return ["", "a", *texts[:18]]


@pytest.fixture
def dump(tables: None, teacher: Path, rows: list[str], make_dump: Callable[..., Path]) -> Path:
    return make_dump(TASK, teacher=teacher, data=rows, top_k=5)


def test_a_dump_is_what_the_layout_says(dump: Path) -> None:
    opened = Dump(dump)
    assert opened.verify() == []
    columns = [column.name for column in opened.distribution.columns]
    assert opened.scan().collect_schema().names() == ["row", "input_ids", *columns]
    ids = dict(opened.scan().select("row", "input_ids").collect().rows())
    expected = [
        (row, at, ids[row][at], ids[row][at + 1]) for row in sorted(ids) for at in range(0, len(ids[row]) - 1, 2)
    ]
    found = opened.positions().select("row", "position", "token_id", "label").sort("row", "position").collect()
    assert found.rows() == expected
    assert sum(receipt.positions for receipt in opened.receipts.values()) == len(expected)
    assert teacher_accuracy(opened)[1] == len(expected)
    assert [spread.name for spread in spreads(opened)][1:] == ["entropy", "top-1 probability", "kept mass"]
    lines = list(readable_rows(opened, 3, 2, 4))
    assert sum("next" in line for line in lines) == 1  # rows 0 and 1 have no position


def test_a_batch_asks_where_the_layout_says(dump: Path) -> None:
    source = DumpSource(dump)
    for batch in in_order(source, [], 4):
        length = batch.input_ids.shape[1]
        assert (batch.positions % length % 2 == 0).all()
        assert batch.labels.tolist() == batch.input_ids.flatten()[batch.positions + 1].tolist()
        assert batch.index.counts.tolist() == (batch.attention_mask.sum(1) // 2).tolist()
    assert source.gold(0)[1].all()


def test_from_a_dump_to_a_students_scores(dump: Path, teacher: Path, tmp_path: Path) -> None:
    validation = {"share": 0.2, "metric": "agreement"}
    made = recipe(tmp_path / "student", TRANSFORMER, KL, GOLD, dump=dump, validation=validation)
    assert distill.run(made, resume=False).steps == 3
    options: dict[str, Any] = {"dump": dump, "task_name": TASK, "device": "cpu"}
    corpus = [str(dump.parent / "corpus.jsonl")]
    student = evaluate(tmp_path / "student", corpus, ScoredColumns(), **options)
    assert student.metrics["perplexity"] > 1
    # The teacher agrees with itself only where its distributions are looked at where they were recorded.
    itself = evaluate(teacher, corpus, ScoredColumns(), **options)
    assert itself.agreement == 1
    assert itself.divergence == pytest.approx(0, abs=1e-3)
    assert student.agreement < 1


def test_without_the_layout_its_dumps_are_refused_with_those_that_there_are(dump: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(LAYOUTS, "every-second")
        with pytest.raises(DumpError, match=r"no layout 'every-second'; there are: next-token, .*none"):
            Dump(dump)
