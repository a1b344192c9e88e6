"""The layout for question answering, with two distributions over the recorded positions of a row: for the start and for
the end of the answer.

The logits of both are recorded at each of `positions`. The gold labels are in `labels`: 1 at the start of the answer, 2
at its end, 3 for both. A row is a window of a question's context, and `question` has the number of the question.

Distributions of a batch are compared as logits over the same number of classes. So the positions of a row are its
classes, padded with -inf to the number of the row with most positions, which changes no softmax.

Shapes: B rows, N recorded positions of all rows, M positions of the row with most positions, S = 2 B distributions: for
each row the start of the answer, then its end.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.dump.codecs import DenseTargets, Targets
from shared.dump.layouts.base import BatchIndex, Field, Layout, Places
from shared.dump.layouts.frames import Recorded, texts_of
from shared.dump.layouts.listed import (
    LABELS,
    POSITIONS,
    check_positions,
    packed_labels,
    packed_positions,
    unpacked_lists,
)
from shared.dump.layouts.readable import text_of
from shared.dump.rowgroup import MISSING, Flat, Int32, Offsets, RowGroup, check_labels

# The two logits of a position, in this order.
ENDPOINTS = ("start", "end")
# A position's gold label is the sum of these values, or 0 if it is neither.
STARTS, ENDS = 1, 2
MARKS = dict(zip(ENDPOINTS, (STARTS, ENDS), strict=True))

_QUESTION = Field(
    "question", "int64", "which row of the files this is a window of, from 0", is_list=False, trains=False
)
_LABELS = replace(
    LABELS,
    about="at each of `positions` 1 where the gold answer starts, 2 where it ends, 3 for both, 0 elsewhere, or null",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class SpanIndex(BatchIndex):
    """The index of a batch of questions. `labels` has for each row the places of the gold start and the gold end.

    Attributes:
        places: bool [B, M], which of the M places of each row are recorded positions and not padding.
    """

    places: Tensor


class Spans(Layout):
    """Two distributions for each row, over its listed tokens."""

    name = "spans"
    place = "for each of `positions` the logits of starting and of ending the answer; each a softmax over the row"
    number = "question"
    needs_all_logits = True
    is_ragged = True

    def fields(self, labelled: bool) -> tuple[Field, ...]:
        return (POSITIONS, _QUESTION, _LABELS) if labelled else (POSITIONS, _QUESTION)

    def pack(self, group: RowGroup, labelled: bool) -> dict[str, Flat]:
        assert group.questions is not None
        columns = packed_positions(group) | {_QUESTION.name: Flat(group.questions)}
        return columns | (packed_labels(group) if labelled else {})

    def unpack(self, columns: Mapping[str, Flat], labelled: bool, token_offsets: Offsets, input_ids: Int32) -> Places:
        return unpacked_lists(columns, labelled)

    def check(self, columns: Mapping[str, Flat], token_offsets: Offsets | None, classes: int) -> Offsets | None:
        check_labels(LABELS.name, columns, STARTS | ENDS)
        return check_positions(columns, token_offsets)

    def per_position(self, labelled: bool) -> dict[str, pl.Expr]:
        no_labels = pl.col("positions").list.eval(pl.lit(None, dtype=pl.Int32).repeat_by(pl.len()).explode())
        return {
            "position": pl.col("positions"),
            "token_id": pl.col("input_ids").list.gather(pl.col("positions")),
            "label": pl.col("labels") if labelled else no_labels,
        }

    def positions(self, dump: Recorded) -> pl.LazyFrame:
        lists = self.lists(dump)
        columns = [name for name in lists.collect_schema().names() if name not in ("row", "question")]
        frame = lists.explode(columns)
        token = texts_of(pl.col("token_id"), dump.token_texts).alias("token")
        return frame.select("row", "question", "position", "token_id", token, *columns[2:])

    def lists(self, dump: Recorded) -> pl.LazyFrame:
        """Return one row per window: row, question, and lists over its recorded positions: position, token_id, label,
        start_logit, end_logit, start_log_prob, end_log_prob."""
        column = dump.distribution.columns[0]
        pairs = pl.element().bin.reinterpret(dtype=pl.Array(pl.Float32, 2))
        logits = [
            pl.col(column.name).list.eval(pairs.arr.get(at)).alias(f"{name}_logit") for at, name in enumerate(ENDPOINTS)
        ]
        places = (expr.alias(name) for name, expr in self.per_position(dump.labelled).items())
        value = pl.element().cast(pl.Float64)
        shifted = value - value.max()
        log_prob = shifted - shifted.exp().sum().log()
        return (
            dump.scan()
            .select("row", "question", *places, *logits)
            .with_columns(pl.col(f"{name}_logit").list.eval(log_prob).alias(f"{name}_log_prob") for name in ENDPOINTS)
        )

    def certainty(self, dump: Recorded) -> pl.LazyFrame:
        value = pl.element()
        entropy = (value.exp() * -value).filter(value > -float("inf")).sum()
        both = [
            pl.concat_list(pl.col(f"{name}_log_prob").list.eval(expr).list.first() for name in ENDPOINTS).alias(alias)
            for expr, alias in ((entropy, "entropy"), (value.max().exp(), "top-1 probability"))
        ]
        return self.lists(dump).select(both).explode("entropy", "top-1 probability")

    def accuracy(self, dump: Recorded) -> tuple[float, int] | None:
        labelled = self.lists(dump).filter(pl.col("label").list.first().is_not_null())
        is_right = [
            pl.col(f"{name}_logit").list.arg_max() == pl.col("label").list.eval(_is_gold(mark)).list.arg_max()
            for name, mark in MARKS.items()
        ]
        share, rows = labelled.select(pl.mean_horizontal(is_right).mean(), pl.len().alias("rows")).collect().row(0)
        return (share, len(ENDPOINTS) * rows) if rows else None

    def title(self, positions: pl.DataFrame) -> str:
        return f" · a window of question {positions['question'][0]}"

    def lines(self, dump: Recorded, positions: pl.DataFrame, candidates: int, most_positions: int) -> Iterator[str]:
        at = positions["position"].to_list()
        texts = [
            f"{text_of(dump.token_texts, index)} (at {where})"
            for index, where in zip(positions["token_id"], at, strict=True)
        ]
        for name, mark in MARKS.items():
            gold = [place for place, label in enumerate(positions["label"]) if label is not None and label & mark]
            ranked = sorted(zip(positions[f"{name}_log_prob"], range(len(texts)), strict=True), reverse=True)[
                :candidates
            ]
            found = ", ".join(f"{texts[place]} {math.exp(value):.3f}" for value, place in ranked)
            yield f"  {name:<6} gold: {texts[gold[0]] if gold else '-'}   teacher: {found}"

    def index(self, rows: RowGroup, length: int) -> SpanIndex:
        found = super().index(rows, length)
        places_BM = np.arange(found.counts.max().item() if len(found.counts) else 0) < found.counts.numpy()[:, None]
        marks_BM = np.zeros(places_BM.shape, np.int64)
        marks_BM[places_BM] = rows.labels
        labels_B2 = np.stack([_gold_place((marks_BM > 0) & (marks_BM & mark > 0)) for mark in MARKS.values()], axis=1)
        return SpanIndex(
            positions=found.positions,
            labels=torch.from_numpy(labels_B2.reshape(-1)),
            counts=torch.full((len(places_BM),), len(ENDPOINTS)),
            places=torch.from_numpy(places_BM),
        )

    def distributions(self, logits: Tensor, index: BatchIndex) -> Tensor:
        return over_places(super().distributions(logits, index), _places(index))

    def targets(self, recorded: Targets, index: BatchIndex) -> DenseTargets:
        assert isinstance(recorded, DenseTargets)
        return DenseTargets(over_places(recorded.logits_NV, _places(index)))


def over_places(logits_N2: Tensor, places_BM: Tensor) -> Tensor:
    """Return logits_SM, from the start and end logits of each position; -inf is padding."""
    nothing_BM = torch.full(places_BM.shape, -torch.inf, dtype=logits_N2.dtype, device=logits_N2.device)
    both = [nothing_BM.masked_scatter(places_BM, logits_N) for logits_N in logits_N2.unbind(-1)]
    return torch.stack(both, dim=1).flatten(0, 1)


def _places(index: BatchIndex) -> Tensor:
    assert isinstance(index, SpanIndex)
    return index.places


def _gold_place(is_gold_BM: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the first gold place of each row, [B]; MISSING if there is none."""
    return np.where(is_gold_BM.any(1), is_gold_BM.argmax(1) if is_gold_BM.shape[1] else 0, MISSING)


def _is_gold(mark: int) -> pl.Expr:
    return (pl.element() // mark % 2).cast(pl.Int8)
