"""A signal from outside: the mean of a row's last hidden states, once a row, from a dump to a student's scores."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from shared import Dump
from shared.dump import shards
from shared.dump.signals import SITES, SignalKey, Site
from shared.errors import RecipeError, TeacherError, UsageError
from shared.text.columns import ScoredColumns
from student_train import distill
from student_train.data.batch import Batch
from student_train.data.batches import TrainingBatches, in_order
from student_train.data.order import Order
from student_train.data.sources import DumpSource
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.forward.teacher_vectors import compared_in_slices, one_of_each_row
from student_train.losses import formulas
from student_train.losses.base import Loss
from student_train.losses.specs import LOSSES
from student_train.scoring.evaluate import evaluate
from teacher_dump.engines.transformers.signals import SOURCES, ForwardPass, Source
from teacher_dump.engines.transformers.teacher import Teacher
from teacher_dump.request import SignalRequest
from tests.student_train.runs import KL, TRANSFORMER, recipe

TASK = "sequence-classification"
POOLED = SignalKey("pooled")


class MeanOfTokens(Source):
    def hidden_layer(self, teacher: Teacher, layer: int | None) -> int:
        return teacher.layers

    def take(self, passed: ForwardPass, teacher: Teacher, layer: int | None) -> Tensor:
        rows = passed.tokens(passed.hidden[teacher.layers]).split(list(passed.lengths))
        return torch.stack([row_LD.float().mean(0) for row_LD in rows])


class BeforeTheNext(Source):
    """Hidden states of a layer before each token that is predicted: of every token but a row's last."""

    def layers(self, teacher: Teacher) -> range:
        return range(teacher.layers + 1)

    def hidden_layer(self, teacher: Teacher, layer: int | None) -> int | None:
        return layer

    def take(self, passed: ForwardPass, teacher: Teacher, layer: int | None) -> Tensor:
        assert layer is not None
        return torch.cat([row_LD[:-1] for row_LD in passed.tokens(passed.hidden[layer]).split(list(passed.lengths))])


class PooledLoss(Loss):
    """A student's mean hidden state against the teacher's."""

    kind: Literal["pooled"] = "pooled"

    @property
    def signal(self) -> SignalKey:
        return POOLED

    @property
    def student_layers(self) -> tuple[int, ...]:
        return (-1,)

    def make_projection(self, source: Any, student: nn.Module, where: str) -> nn.Module:
        return nn.Linear(TRANSFORMER["hidden_size"], source.widths[POOLED])

    def count(self, batch: Batch) -> int:
        return len(batch.rows)

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        student_RD = one_of_each_row(outputs.hidden_TD[-1], outputs.lengths, "mean")
        return compared_in_slices(student_RD, projection, targets.vectors[POOLED], formulas.hidden_mse)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SITES, "pooled", Site("the mean of a row's hidden states", per="row"))
    monkeypatch.setitem(SOURCES, "pooled", MeanOfTokens())
    monkeypatch.setitem(LOSSES, "pooled", PooledLoss)


@pytest.fixture(scope="module")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher(TASK)


@pytest.fixture
def dump(
    tables: None, teacher: Path, make_dump: Callable[..., Path], toy_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Its batches end in the middle of its row groups, and each shard has several of these."""
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 3000)
    asked = (SignalRequest("pooled", codec="int8"),)
    return make_dump(TASK, teacher=teacher, data=toy_rows(TASK, 40), hidden="1", signals=asked, batch_tokens=60)


@torch.inference_mode()
def expected(teacher: Path, rows: list[dict[str, Any]]) -> list[Tensor]:
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(teacher),
        AutoTokenizer.from_pretrained(teacher),
    )
    inputs = (tokenizer(row["text"], return_tensors="pt", truncation=True, max_length=64) for row in rows)
    return [model.bert(**each).last_hidden_state[0].mean(0) for each in inputs]


def test_a_row_has_one_entry_in_the_files_and_to_polars(dump: Path, teacher: Path, toy_rows: Any) -> None:
    opened, wanted = Dump(dump), expected(teacher, toy_rows(TASK, 40))
    assert opened.verify() == []
    assert max(len(receipt.row_groups) for receipt in opened.receipts.values()) > 2
    lists = opened.scan().select(pl.col("pooled.scale").list.len().unique()).collect()["pooled.scale"].to_list()
    assert lists == [1]
    found = opened.vectors("pooled").sort("row").collect()
    assert found["row"].to_list() == list(range(40))
    assert found["position"].null_count() == 40
    np.testing.assert_allclose(found["vector"].to_list(), torch.stack(wanted), atol=0.02)
    # What is recorded per token is so beside it.
    tokens = opened.scan().select(pl.col("input_ids").list.len().sum()).collect().item()
    assert len(opened.vectors("hidden.1").collect()) == tokens
    # For each row, and not for each token: 32 codes, a scale, and what Parquet adds to row groups as small as these.
    assert 32 + 4 < opened.manifest.measured["pooled"]["bytes_per_position"] < 80
    assert "one for the row" in (dump / "README.md").read_text()


def test_a_batch_has_the_entries_of_its_rows(dump: Path, teacher: Path, toy_rows: Any) -> None:
    source, wanted = DumpSource(dump), expected(teacher, toy_rows(TASK, 40))
    columns = source.columns_of([POOLED, SignalKey("hidden", 1)])
    batches = iter(TrainingBatches(source, columns, Order(source.sizes(columns), seed=3, batch_size=7)))
    seen: list[int] = []
    while len(seen) < 40:
        batch = next(batches)
        numbers = batch.rows.tolist()
        vectors = source.vectors[POOLED].decode(batch.columns)
        np.testing.assert_allclose(vectors, torch.stack([wanted[number] for number in numbers]), atol=0.02)
        assert len(batch.columns["hidden.1"]) == int(batch.attention_mask.sum())
        seen += numbers
    assert sorted(seen) == list(range(40))


def test_from_a_dump_to_a_students_scores(dump: Path, tmp_path: Path) -> None:
    made = recipe(
        tmp_path / "student", TRANSFORMER, KL, {"kind": "pooled"}, dump=dump, validation={"share": 0.2, "every": 2}
    )
    assert distill.run(made, resume=False).steps == 3
    corpus = str(dump.parent / "corpus.jsonl")
    report = evaluate(tmp_path / "student", [corpus], ScoredColumns(), dump=dump, device="cpu").as_dict()
    assert report["rows"] == 40
    assert 0 <= report["agreement"] <= 1


def test_a_dump_is_finished_as_it_was_begun(dump: Path, teacher: Path, make_dump: Callable[..., Path]) -> None:
    shard = dump / "shards" / "00001.parquet"
    before = shard.read_bytes()
    shard.unlink()
    asked = (SignalRequest("pooled", codec="int8"),)
    data = dump.parent / "corpus.jsonl"
    make_dump(TASK, teacher=teacher, data=data, out=dump, hidden="1", signals=asked, batch_tokens=60)
    assert shard.read_bytes() == before


def test_a_signal_may_be_recorded_at_the_recorded_positions(
    make_dump: Callable[..., Path], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SITES, "before", Site("hidden states before a token", per="position", first_layer=0))
    monkeypatch.setitem(SOURCES, "before", BeforeTheNext())
    asked = (SignalRequest("before", 1, "float16"),)
    dump = Dump(make_dump("causal-lm", data=["", "x", *texts[:9]], top_k=2, hidden="1", signals=asked))
    assert dump.verify() == []
    found = dump.vectors("before.1").sort("row", "position").collect()
    positions = dump.positions().select("row", "position").sort("row", "position").collect()
    assert found.select("row", "position").equals(positions)
    everywhere = dump.vectors("hidden.1").collect()
    assert found.equals(found.select("row", "position").join(everywhere, on=["row", "position"], maintain_order="left"))
    source = DumpSource(dump.path)
    keys = [SignalKey("distribution"), SignalKey("before", 1)]
    for batch in in_order(source, source.columns_of(keys), 4):
        assert len(batch.columns["before.1"]) == len(batch.positions)


def test_a_vector_that_no_codec_can_hold_is_refused_with_its_row(
    tables: None, teacher: Path, make_dump: Callable[..., Path], toy_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(source: Source, passed: ForwardPass, teacher: Teacher, layer: int | None) -> Tensor:
        vectors = torch.ones(len(passed.lengths), 4)
        vectors[[length == 7 for length in passed.lengths]] = torch.nan
        return vectors

    rows = [{"text": "fox"}, {"text": "a lazy dog"}, {"text": "the quick brown fox jumps"}]
    monkeypatch.setattr(MeanOfTokens, "take", broken)
    with pytest.raises(TeacherError, match=r"row 2: NaN or infinity in the teacher's pooled"):
        make_dump(TASK, teacher=teacher, data=rows, signals=(SignalRequest("pooled"),))


def test_readers_need_no_table(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SITES, "pooled")
    assert len(Dump(dump).vectors("pooled").collect()) == 40


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([SignalRequest("pooled", 1)], r"signal 'pooled\.1': 'pooled' does not belong to a layer"),
        ([SignalRequest("pooled"), SignalRequest("pooled", codec="int4")], r"signal 'pooled' is requested twice"),
        ([SignalRequest("poled")], r"unknown signal 'poled'; there are: distribution, hidden, .*pooled"),
    ],
)
def test_what_is_not_there_is_refused(
    asked: Collection[SignalRequest], message: str, tables: None, teacher: Path, make_dump: Callable[..., Path]
) -> None:
    with pytest.raises(UsageError, match=message):
        make_dump(TASK, teacher=teacher, data=["a fox"], signals=tuple(asked))


def test_a_dump_without_it_is_refused_by_its_loss(
    tables: None, teacher: Path, make_dump: Callable[..., Path], toy_rows: Any, tmp_path: Path
) -> None:
    folder = make_dump(TASK, teacher=teacher, data=toy_rows(TASK, 8))
    with pytest.raises(RecipeError, match=r"needs the signal 'pooled', which .* lacks; it has distribution"):
        distill.run(recipe(tmp_path / "student", TRANSFORMER, {"kind": "pooled"}, dump=folder), resume=False)
