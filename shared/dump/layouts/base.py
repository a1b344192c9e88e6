"""The base class of layouts, which define where in a row distributions and gold labels are.

A layout is an object in the table `LAYOUTS`, and the manifest has its name. Code that depends on where something is
recorded calls the layout's methods and never compares names. A new layout defines the Parquet columns that it adds
(`fields`), how they are written and read (`pack`, `unpack`), and polars expressions over them (`per_position`). The
defaults of the other methods suit every layout with one distribution at each recorded position.

Shapes: R rows of a row group, P recorded positions of all its rows; B rows of a batch, L tokens of its longest row, N
recorded positions of all its rows, C classes, S distributions.
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
    """A Parquet column that is not a codec's.

    Attributes:
        dtype: numpy's name for the type of its numbers.
        about: description of the content, which is written into the files.
        is_list: whether each row has a list of numbers instead of one number.
        holds_gold: whether it holds gold labels, which may be missing (MISSING in memory, null on disk).
        trains: whether training reads it with every row.
    """

    name: str
    dtype: str
    about: str
    is_list: bool = True
    holds_gold: bool = False
    trains: bool = True


class Places(NamedTuple):
    """The recorded positions of a row group.

    Attributes:
        offsets: int64 [R + 1]; row r's positions are positions[offsets[r]:offsets[r + 1]].
        positions: int32 [P], indices into the row's own tokens.
        labels: int32 [P], gold labels, MISSING if unknown.
        columns: the layout's `columns`, by name.
    """

    offsets: Offsets
    positions: Int32
    labels: Int32
    columns: Mapping[str, NDArray[Any]] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class BatchIndex:
    """The recorded positions and gold labels of a padded batch.

    A layout that needs more adds tensors in a subclass. All tensors move to the student's device with the batch.

    Attributes:
        positions: int64 [N], indices into the flattened [B * L].
        labels: int64 [S], the gold class of each distribution, MISSING if unknown.
        counts: int64 [B], number of distributions of each row.
        inputs: further inputs of the model, besides the rows' tokens, by the names of its arguments.
    """

    positions: Tensor
    labels: Tensor
    counts: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)


class Layout(ABC):
    """Where in a row distributions and gold labels are.

    Attributes:
        name: name in the table and in the manifest.
        place: what an entry of a distribution's columns belongs to, as text for readers: "one for the row".
        has_distributions: whether the layout has distributions.
        by_row: whether a distribution is about the whole row, so that a model's logits are [B, C] and not [B, L, C].
        columns: names of further arrays [P, ...] with an entry for each recorded position. A task gives them in
            `TokenizedRow.columns`; in memory they are in `RowGroup.columns`.
        number: column by which rows are grouped: rows with the same value are all held out for validation, or none is.
        needs_all_logits: whether distributions can only be assembled if every logit is kept.
        is_ragged: whether distributions have different numbers of classes, padded with logits of -inf.
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
        """Return the columns that the layout adds; `labelled` says whether the dump has gold labels."""

    @abstractmethod
    def pack(self, group: RowGroup, labelled: bool) -> dict[str, Flat]:
        """Return the columns of `fields` for a row group, by name."""

    @abstractmethod
    def unpack(self, columns: Mapping[str, Flat], labelled: bool, token_offsets: Offsets, input_ids: Int32) -> Places:
        """Return the recorded positions and their gold labels, from the columns whose field `trains`.

        Raises:
            ValueError: if the lengths of a column's lists do not fit the rows (a damaged file).
        """

    def check(self, columns: Mapping[str, Flat], token_offsets: Offsets | None, classes: int) -> Offsets | None:
        """Check the values of those of its columns that were read, before anything is made of them.

        Args:
            columns: columns by name.
            token_offsets: int64 [R + 1], the offsets of the rows' tokens; None if they were not read.
            classes: number of classes of gold labels.

        Returns:
            The offsets of the recorded positions, int64 [R + 1]; None if they do not follow from these columns.

        Raises:
            ValueError: for positions that their row lacks, or for labels that are no classes.
        """
        return None

    def has_gold(self, columns: Mapping[str, Flat], rows: int, labelled: bool) -> NDArray[np.bool_]:
        """Return which rows have a gold label anywhere, bool [R], from the columns whose field `holds_gold`.

        In a layout without such columns all rows have labels if the dump is labelled (the text itself), else none.
        """
        found = [columns[field.name] for field in self.fields(labelled) if field.holds_gold]
        if not found:
            return np.full(rows, labelled)
        is_known = found[0].numbers() != MISSING
        if found[0].offsets is None:
            return is_known
        before = np.concatenate([[0], np.cumsum(is_known)])
        return np.diff(before[found[0].offsets]) > 0

    # ---------------------------------------------------------------- inspection

    gold_title: ClassVar[str] = "gold"

    @abstractmethod
    def per_position(self, labelled: bool) -> dict[str, pl.Expr]:
        """Return expressions over the raw columns for those of `position`, `token_id` and `label` that the layout has.

        Each gives a list with one entry per distribution.
        """

    def positions(self, dump: Recorded) -> pl.LazyFrame:
        """Return the frame of `Dump.positions`, with one row per recorded position."""
        return decoded(dump, self.per_position(dump.labelled))

    def certainty(self, dump: Recorded) -> pl.LazyFrame:
        """Return entropy (nats), top-1 probability and kept mass, with one row per distribution."""
        top_1 = first_log_prob().exp().alias("top-1 probability")
        return self.positions(dump).select("entropy", top_1, (1 - pl.col("tail").exp()).alias("kept mass"))

    def accuracy(self, dump: Recorded) -> tuple[float, int] | None:
        """Return (share of labels that are the teacher's first choice, number of labels); None without gold labels."""
        frame = self.positions(dump).filter(pl.col("label").is_not_null())
        is_right = first_choice() == pl.col("label")
        share, count = frame.select(is_right.mean(), pl.len().alias("n")).collect().row(0)
        return (share, count) if count else None

    def title(self, positions: pl.DataFrame) -> str:
        """Return text to print after a row's number, from the row's part of `positions`."""
        return ""

    def lines(self, dump: Recorded, positions: pl.DataFrame, candidates: int, most_positions: int) -> Iterator[str]:
        """Yield a row's part of `positions` as lines of text: gold labels and the teacher's most probable
        candidates."""
        return position_lines(dump, positions, candidates, most_positions, self.gold_title)

    # ---------------------------------------------------------------- batches

    def index(self, rows: RowGroup, length: int) -> BatchIndex:
        """Return the index of a batch of these rows, padded on the right to `length` tokens; its tensors are on the
        CPU.

        If the positions of a layout are not those of the rows' tokens (but of a decoder's, for example), they are
        indices into the model's output for `inputs`.
        """
        counts_B = np.diff(rows.position_offsets)
        firsts = np.repeat(np.arange(len(counts_B)) * length, counts_B)
        return BatchIndex(
            torch.from_numpy(rows.positions + firsts),
            torch.from_numpy(rows.labels.astype(np.int64)),
            torch.from_numpy(counts_B),
        )

    def distributions(self, logits: Tensor, index: BatchIndex) -> Tensor:
        """Return the distributions [S, C] that are compared, from a model's logits [B, L, C] ([B, C] if `by_row`).

        It is not called for a model whose vocabulary head is held back: such a model gives the logits at
        `index.positions` only, and layouts for vocabularies have one distribution at each recorded position.
        """
        return logits.flatten(0, 1)[index.positions]

    def targets(self, recorded: Targets, index: BatchIndex) -> Targets:
        """Return the S targets, from the teacher's decoded columns, which have one entry per recorded position (or
        row)."""
        return recorded
