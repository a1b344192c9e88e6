"""What a layout is: where in a row distributions and gold labels are, on disk, for people and in a batch.

A layout is one object of the table `LAYOUTS`, and the manifest names it. Everything that depends on where something is
recorded asks it; nobody asks which one it is. A new one says which Parquet columns it adds (`fields`), how they come
about and are read (`pack`, `unpack`), and what polars makes of them (`per_position`); the other methods have an answer
that suits every layout with one distribution at each recorded position.

Shapes: R rows of a row group, P recorded positions of all rows; B rows of a batch, L tokens of the longest, N recorded
positions of all rows, C classes, S distributions.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.dump.codecs import Targets
from shared.dump.layouts.frames import Recorded, decoded, first_choice, first_log_prob
from shared.dump.layouts.readable import position_lines
from shared.dump.rowgroup import MISSING, Flat, Int32, Offsets, RowGroup


@dataclass(frozen=True)
class Field:
    """A Parquet column of a layout, beside those that every dump has.

    Attributes:
        dtype: numpy's name of its numbers.
        about: what it holds, written into the files for people.
        is_list: whether each row has a list of numbers in place of one.
        holds_gold: whether these are gold labels, of which single ones may be missing (MISSING in memory, null on
            disk).
        trains: whether a trainer reads it with every row.
    """

    name: str
    dtype: str
    about: str
    is_list: bool = True
    holds_gold: bool = False
    trains: bool = True


class Places(NamedTuple):
    """Where something is recorded in a row group.

    Attributes:
        offsets: int64 [R + 1]; row r's positions are positions[offsets[r]:offsets[r + 1]].
        positions: int32 [P], indices into the row's own tokens.
        labels: int32 [P], gold labels, MISSING where unknown.
        columns: the layout's `columns`.
    """

    offsets: Offsets
    positions: Int32
    labels: Int32
    columns: Mapping[str, NDArray[Any]] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class BatchIndex:
    """Where in a padded batch something is recorded, and what is asked there. A layout that needs more adds tensors in
    a subclass; all of them move to the student's device with the batch.

    Attributes:
        positions: int64 [N], indices into the flattened [B * L].
        labels: int64 [S], the gold class of each distribution, MISSING where unknown.
        counts: int64 [B], how many of the distributions are each row's.
        inputs: what a model is given beside the rows' tokens, by the names of its arguments.
    """

    positions: Tensor
    labels: Tensor
    counts: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)


class Layout(ABC):
    """Where in a row distributions and gold labels are.

    Attributes:
        name: its name in the table and in the manifest.
        place: of what a distribution's columns hold one, for people: "one for the row".
        has_distributions: whether there are any.
        by_row: whether a distribution is about the whole row, so that a model's logits are [B, C] and not [B, L, C].
        columns: what it keeps of each recorded position besides, [P, ...]: a task gives it by name in
            `TokenizedRow.columns`, and it lies in `RowGroup.columns`.
        number: the column by whose value rows belong together: they are held out together or not at all.
        needs_all_logits: whether its distributions can be put together only where every logit is kept.
        is_ragged: whether distributions have different numbers of classes, filled up with logits of -inf.
    """

    name: ClassVar[str]
    place: ClassVar[str]
    has_distributions: ClassVar[bool] = True
    by_row: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ()
    number: ClassVar[str] = "row"
    needs_all_logits: ClassVar[bool] = False
    is_ragged: ClassVar[bool] = False

    # ---------------------------------------------------------------- Parquet

    @abstractmethod
    def fields(self, labelled: bool) -> tuple[Field, ...]:
        """The columns that it adds; `labelled` says whether the dump has gold labels."""

    @abstractmethod
    def pack(self, group: RowGroup, labelled: bool) -> dict[str, Flat]:
        """A row group -> the columns of `fields`, by name."""

    @abstractmethod
    def unpack(self, columns: Mapping[str, Flat], labelled: bool, token_offsets: Offsets, input_ids: Int32) -> Places:
        """The columns that `trains` -> where something is recorded, and the gold labels there.

        Raises:
            ValueError: where a column has other lengths than the rows have (a damaged file).
        """

    def has_gold(self, columns: Mapping[str, Flat], rows: int, labelled: bool) -> NDArray[np.bool_]:
        """Which rows have a gold label anywhere, bool [R], from the columns that hold gold labels alone. A layout
        without such columns has labels that the text itself is, or none."""
        found = [columns[field.name] for field in self.fields(labelled) if field.holds_gold]
        if not found:
            return np.full(rows, labelled)
        is_known = found[0].numbers() != MISSING
        if found[0].offsets is None:
            return is_known
        before = np.concatenate([[0], np.cumsum(is_known)])
        return np.diff(before[found[0].offsets]) > 0

    # ---------------------------------------------------------------- people

    gold_title: ClassVar[str] = "gold"

    @abstractmethod
    def per_position(self, labelled: bool) -> dict[str, pl.Expr]:
        """Expressions over the raw columns, each a list with one entry a distribution: `position`, `token_id` and
        `label`, as far as there are such."""

    def positions(self, dump: Recorded) -> pl.LazyFrame:
        """What `Dump.positions` gives: one row a recorded position."""
        return decoded(dump, self.per_position(dump.labelled))

    def certainty(self, dump: Recorded) -> pl.LazyFrame:
        """Entropy (nats), top-1 probability and so on, one row a distribution."""
        top_1 = first_log_prob().exp().alias("top-1 probability")
        return self.positions(dump).select("entropy", top_1, (1 - pl.col("tail").exp()).alias("kept mass"))

    def accuracy(self, dump: Recorded) -> tuple[float, int] | None:
        """(how often the teacher's first choice is the gold label, over how many), None where nothing is labelled."""
        frame = self.positions(dump).filter(pl.col("label").is_not_null())
        is_right = first_choice() == pl.col("label")
        share, count = frame.select(is_right.mean(), pl.len().alias("n")).collect().row(0)
        return (share, count) if count else None

    def title(self, positions: pl.DataFrame) -> str:
        """What to say of a row beside its number, from its part of `positions`."""
        return ""

    def lines(self, dump: Recorded, positions: pl.DataFrame, candidates: int, most_positions: int) -> Iterator[str]:
        """A row's part of `positions`, readable: gold labels beside the teacher's most probable candidates."""
        return position_lines(dump, positions, candidates, most_positions, self.gold_title)

    # ---------------------------------------------------------------- batches

    def index(self, rows: RowGroup, length: int) -> BatchIndex:
        """Where something is recorded in a batch of these rows, padded on the right to `length` tokens, on the host.

        A layout whose positions are not those of the rows' tokens (a decoder's, perhaps) has them point into what the
        model gives for its `inputs`.
        """
        counts_B = np.diff(rows.position_offsets)
        firsts = np.repeat(np.arange(len(counts_B)) * length, counts_B)
        return BatchIndex(
            torch.from_numpy(rows.positions + firsts),
            torch.from_numpy(rows.labels.astype(np.int64)),
            torch.from_numpy(counts_B),
        )

    def distributions(self, logits: Tensor, index: BatchIndex) -> Tensor:
        """A model's logits [B, L, C] ([B, C] for a layout `by_row`) -> the distributions that are compared, [S, C].

        Models whose vocabulary head is held back give the logits at `index.positions` only, and this is not asked: a
        layout for vocabularies has one distribution at each recorded position.
        """
        return logits.flatten(0, 1)[index.positions]

    def targets(self, recorded: Targets, index: BatchIndex) -> Targets:
        """What the teacher's columns decode to, one entry a recorded position (or row) -> the S distributions."""
        return recorded
