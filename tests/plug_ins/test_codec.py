"""Codecs from outside, through the tables alone: of distributions and of vectors, from a dump to a student's scores."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from shared import Dump
from shared.dump.codecs import (
    CODECS,
    RULES,
    VECTOR_KINDS,
    Column,
    DenseTargets,
    DistributionCodec,
    Sparse,
    VectorCodec,
)
from shared.dump.codecs.base import refuse_broken
from shared.dump.codecs.selection.rule import Kept, Rule
from shared.dump.codecs.selection.rules import kept_of_top, most_probable
from shared.dump.codecs.selection.softmax import Softmax
from shared.dump.codecs.vectors.low_rank import LowRankVectors
from shared.errors import DumpError, UsageError
from shared.text.columns import ScoredColumns
from student_train import distill
from student_train.scoring.evaluate import evaluate
from teacher_dump.request import SignalRequest
from tests.student_train.runs import HIDDEN, KL, TRANSFORMER, recipe

TASK = "sequence-classification"


class Rounded(DistributionCodec):
    """Logits as whole multiples of a step, which is fitted so that the largest one fits into 8 bits."""

    keeps_all_logits: ClassVar[bool] = True

    codec: Literal["rounded"] = "rounded"
    classes: int
    step: float = 1.0

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column(f"{self.name}.steps", "int8", self.classes),)

    def describe(self) -> str:
        return f"{self.classes} logits in steps of {self.step:.3g}"

    def fitted(self, sample: Any) -> "Rounded":
        return self.model_copy(update={"step": max(float(logits.abs().max()) for logits, _ in sample) / 100})

    def measured(self, sample: Any) -> dict[str, float]:
        return {"worst_step": max(float((logits / self.step).abs().max()) for logits, _ in sample)}

    def encode(self, logits_NV: Tensor, keys_N: Tensor) -> dict[str, Tensor]:
        refuse_broken(~logits_NV.isfinite().all(-1))
        return {self.columns[0].name: (logits_NV / self.step).round().clamp(-127, 127).to(torch.int8)}

    def decode(self, columns: dict[str, Tensor]) -> DenseTargets:
        return DenseTargets(columns[self.columns[0].name].float() * self.step)

    def ids_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        return pl.lit(list(range(self.classes)), dtype=pl.List(pl.Int64))

    def log_probs_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        logits = self.columns[0].list_expr().cast(pl.List(pl.Float64)) * self.step
        return logits.list.eval(pl.element() - pl.element().exp().sum().log())

    def exact_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        return pl.lit(self.classes, dtype=pl.UInt32)

    def tail_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        return pl.lit(float("-inf"))


class Signs(VectorCodec):
    """Of each number its sign, and of a vector their mean size."""

    codec: Literal["signs"] = "signs"
    width: int

    @property
    def columns(self) -> tuple[Column, ...]:
        return Column(f"{self.name}.signs", "int8", self.width), Column(f"{self.name}.size", "float32")

    def describe(self) -> str:
        return f"signs, {self.width} wide"

    def encode(self, vectors_ND: Tensor) -> dict[str, Tensor]:
        refuse_broken(~vectors_ND.isfinite().all(-1))
        values = (vectors_ND.sign().to(torch.int8), vectors_ND.float().abs().mean(-1))
        return {column.name: value for column, value in zip(self.columns, values, strict=True)}

    def decode(self, columns: dict[str, Tensor]) -> Tensor:
        signs, size = (columns[column.name] for column in self.columns)
        return signs.float() * size[:, None]

    def vector_expr(self) -> pl.Expr:
        signs, size = self.columns
        return signs.list_expr().cast(pl.List(pl.Float32)) * size.expr()


class MoreThanHalf(Rule):
    """Ids more than half as probable as the most probable one."""

    has_floors: ClassVar[bool] = True

    rule: Literal["more-than-half"] = "more-than-half"
    most: int = 8

    @property
    def expected_ids(self) -> int:
        return 2

    def describe(self) -> str:
        return "more than half of the largest probability"

    def select(self, softmax: Softmax, keys_N: Tensor) -> Kept:
        ids_NK, log_probs_NK = most_probable(softmax, self.most)
        return kept_of_top(softmax, ids_NK, log_probs_NK, log_probs_NK > log_probs_NK[:, :1] + math.log(0.5))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, "rounded", Rounded)
    monkeypatch.setitem(CODECS, "signs", Signs)
    monkeypatch.setitem(VECTOR_KINDS, "signs", Signs)
    monkeypatch.setitem(RULES, "more-than-half", MoreThanHalf)


@pytest.fixture(scope="module")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher(TASK)


@torch.inference_mode()
def test_a_student_learns_from_codecs_that_were_plugged_in(
    tables: None, teacher: Path, make_dump: Callable[..., Path], toy_rows: Any, tmp_path: Path
) -> None:
    rows = toy_rows(TASK, 20)
    asked = SignalRequest("distribution", codec="rounded")
    folder = make_dump(TASK, teacher=teacher, data=rows, signals=(asked,), hidden="2", hidden_codec="signs")
    dump = Dump(folder)
    assert dump.verify() == []
    assert isinstance(dump.distribution, Rounded)
    assert dump.manifest.measured["distribution"]["worst_step"] == pytest.approx(100)
    assert dump.manifest.measured["hidden.2"]["cosine"] > 0.7
    assert "20 rows" in (folder / "README.md").read_text()

    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(teacher),
        AutoTokenizer.from_pretrained(teacher),
    )
    for row, log_probs in dump.positions().select("row", "log_probs").sort("row").collect().rows():
        expected = model(**tokenizer(rows[row]["text"], return_tensors="pt")).logits[0].log_softmax(-1)
        np.testing.assert_allclose(log_probs, expected, atol=0.05)
    first = dump.vectors("hidden.2").filter(pl.col("row") == 0).sort("position").collect()["vector"].to_list()
    hidden = model.bert(**tokenizer(rows[0]["text"], return_tensors="pt")).last_hidden_state[0]
    assert torch.equal(torch.tensor(first).sign(), hidden.sign())


def test_from_a_dump_to_a_students_scores(
    tables: None, teacher: Path, make_dump: Callable[..., Path], toy_rows: Any, tmp_path: Path
) -> None:
    asked = SignalRequest("distribution", codec="rounded")
    folder = make_dump(
        TASK, teacher=teacher, data=toy_rows(TASK, 20), signals=(asked,), hidden="2", hidden_codec="signs"
    )
    losses = (KL, {"kind": "logits-mse"}, HIDDEN)
    result = distill.run(recipe(tmp_path / "student", TRANSFORMER, *losses, dump=folder), resume=False)
    assert result.steps == 3
    corpus = str(folder.parent / "corpus.jsonl")
    report = evaluate(tmp_path / "student", [corpus], ScoredColumns(), dump=folder, device="cpu").as_dict()
    assert report["rows"] == 20
    assert 0 <= report["agreement"] <= 1


def test_a_rule_for_choosing_ids_is_plugged_in(
    tables: None, make_dump: Callable[..., Path], texts: list[str], tmp_path: Path
) -> None:
    asked = SignalRequest("distribution", codec="sparse", parameters={"selection": {"rule": "more-than-half"}})
    folder = make_dump("causal-lm", data=texts[:12], signals=(asked,))
    dump = Dump(folder)
    assert isinstance(dump.distribution, Sparse)
    assert isinstance(dump.distribution.selection, MoreThanHalf)
    assert dump.verify() == []
    found = dump.positions().select("log_probs", "tail").collect()
    counts = found["log_probs"].list.len()
    assert counts.min() == 1
    assert 1 < counts.max() <= 8
    for log_probs, tail in found.rows():
        # But for the rounding to codes.
        assert min(log_probs) > max(log_probs) + math.log(0.5) - 0.1
        assert sum(map(math.exp, log_probs)) + math.exp(tail) == pytest.approx(1, abs=0.02)
    distill.run(recipe(tmp_path / "student", TRANSFORMER, KL, dump=folder), resume=False)


def test_a_dump_goes_on_with_what_was_fitted(
    tables: None, teacher: Path, make_dump: Callable[..., Path], toy_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "signals": (SignalRequest("hidden", 1, "low-rank", {"rank": 4, "coefficients": "signs"}),)
    }
    folder = make_dump(TASK, teacher=teacher, data=toy_rows(TASK, 20), **options)
    codec = Dump(folder).manifest.vectors["hidden.1"]
    assert isinstance(codec, LowRankVectors)
    assert isinstance(codec.coefficient_codec, Signs)
    shard = folder / "shards" / "00001.parquet"
    before = shard.read_bytes()
    shard.unlink()
    monkeypatch.setattr("teacher_dump.annotate.calibrate", lambda *_: pytest.fail("calibrated a second time"))
    make_dump(TASK, teacher=teacher, data=folder.parent / "corpus.jsonl", out=folder, **options)
    assert shard.read_bytes() == before


def test_without_the_codec_a_dump_names_what_it_lacks(
    teacher: Path, make_dump: Callable[..., Path], toy_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(CODECS, "signs", Signs)
        folder = make_dump(
            TASK, teacher=teacher, data=toy_rows(TASK, 4), signals=(SignalRequest("hidden", 1, "signs"),)
        )
    with pytest.raises(
        DumpError, match=r"signals\.1\.codec\.codec = 'signs': the valid ones are 'dense', .*'low-rank'"
    ):
        Dump(folder)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (SignalRequest("hidden", 1, "nibbles"), r"unknown codec 'nibbles'; there are: dense, sparse,.*signs"),
        (SignalRequest("hidden", 1, "dense"), r"signal 'hidden\.1': the codec 'dense' is not for vectors"),
        (SignalRequest("distribution", codec="signs"), r"'distribution': the codec 'signs' is not for distributions"),
        (SignalRequest("hidden", 1, "signs", {"bits": 3}), r"'hidden\.1': codec 'signs': unknown key 'bits'"),
        (
            SignalRequest("hidden", 1, "low-rank", {"rank": 4, "coefficients": "x"}),
            r"'x' is not one of float16, .*signs",
        ),
        (SignalRequest("hidden", 3), r"signal 'hidden\.3': this teacher has it in layers 0 to 2"),
        (SignalRequest("hidden"), r"signal 'hidden': this teacher has it in layers 0 to 2"),
        (SignalRequest("distribution", codec="exact"), r"request them with `exact`"),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    request_: SignalRequest, message: str, tables: None, teacher: Path, make_dump: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        make_dump(TASK, teacher=teacher, data=["a fox"], signals=(request_,), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
