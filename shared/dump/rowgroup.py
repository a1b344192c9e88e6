"""Row groups in memory: flat arrays, without a Python object per row.

Shapes: R rows, T tokens of all rows, P recorded positions of all rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.dump.codecs import Column, counts_of
from shared.dump.signals import Per

# A missing gold label: the value that torch's cross-entropy ignores, and null in the files.
MISSING = -100

Offsets = NDArray[np.int64]
Int32 = NDArray[np.int32]


class Lists:
    """A list column in memory: the values of all positions one after the other, and the offsets of each position.

    It is sliced and joined like an array with one list per position.

    Attributes:
        values: [E].
        offsets: int64 [N + 1]; position n's values are values[offsets[n]:offsets[n + 1]].
    """

    def __init__(self, values: NDArray[Any], offsets: Offsets) -> None:
        self.values, self.offsets = values, offsets

    @classmethod
    def of_counts(cls, values: NDArray[Any], counts: NDArray[Any]) -> "Lists":
        """Return the list column with `counts` values at each position."""
        return cls(values, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))

    @property
    def counts(self) -> NDArray[np.int32]:
        """The number of values of each position, [N]."""
        return np.diff(self.offsets).astype(np.int32)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, part: slice) -> "Lists":
        start, stop, _ = part.indices(len(self))
        offsets = self.offsets[start : max(start, stop) + 1]
        return Lists(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])


Values = NDArray[Any] | Lists


def join(parts: Sequence[Values]) -> Values:
    """Concatenate pieces of one column."""
    if not isinstance(parts[0], Lists):
        return np.concatenate(parts)  # type: ignore[arg-type]
    lists = [part for part in parts if isinstance(part, Lists)]
    return Lists.of_counts(
        np.concatenate([part.values for part in lists]), np.concatenate([part.counts for part in lists])
    )


def from_flat(columns: Sequence[Column], flat: Mapping[str, NDArray[Any]]) -> dict[str, Values]:
    """Return a codec's columns, from the result of its `encode` as arrays."""
    return {
        column.name: Lists.of_counts(flat[column.name], flat[counts_of(column.name)])
        if column.is_list
        else flat[column.name]
        for column in columns
    }


def to_flat(columns: Mapping[str, Values]) -> dict[str, NDArray[Any]]:
    """Return the arguments of a codec's `decode` as arrays, from its columns."""
    flat: dict[str, NDArray[Any]] = {}
    for name, values in columns.items():
        if isinstance(values, Lists):
            flat[name], flat[counts_of(name)] = values.values, values.counts
        else:
            flat[name] = values
    return flat


@dataclass(frozen=True, eq=False)
class Flat:
    """A column of R rows.

    Attributes:
        values: values of all rows, one after the other; MISSING instead of a missing number.
        offsets: int64 [R + 1]; row r has values[offsets[r]:offsets[r + 1]]. None if each row has one value.
    """

    values: Values
    offsets: Offsets | None = None

    @property
    def rows(self) -> int:
        """R."""
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    def numbers(self) -> NDArray[Any]:
        """Return the values of a column without lists in lists."""
        assert not isinstance(self.values, Lists)
        return self.values

    def list_offsets(self) -> Offsets:
        """Return the offsets of a column that has a list for each row."""
        assert self.offsets is not None
        return self.offsets


def check_lengths(name: str, columns: Mapping[str, Flat], expected: Offsets) -> None:
    """Raise ValueError if the offsets of a column's lists are not the expected ones (a damaged file)."""
    found = columns[name].list_offsets()
    if found is not expected and not np.array_equal(found, expected):
        raise ValueError(f"the lengths of the lists in column {name!r} do not fit their rows")


def check_labels(name: str, columns: Mapping[str, Flat], largest: int) -> None:
    """Raise ValueError if a gold label of column `name`, if it was read, is neither missing nor from 0 to `largest`."""
    if name not in columns or not (labels := columns[name].numbers()).size:
        return
    if labels.max() > largest or labels.min() < MISSING or ((labels < 0) & (labels != MISSING)).any():
        bad = labels[(labels > largest) | ((labels < 0) & (labels != MISSING))][0]
        raise ValueError(f"column {name!r} holds the label {bad}, but labels are from 0 to {largest:,}")


@dataclass
class RowGroup:
    """Some rows, as flat arrays.

    Attributes:
        rows: int64 [R], row numbers of the corpus.
        token_offsets: int64 [R + 1]; row r's tokens are input_ids[token_offsets[r]:token_offsets[r + 1]].
        input_ids: int32 [T].
        token_type_ids: uint8 [T], or None if rows are not pairs.
        position_offsets: int64 [R + 1]; row r's recorded positions are
            positions[position_offsets[r]:position_offsets[r + 1]].
        positions: int32 [P], indices into the row's own tokens.
        labels: int32 [P], gold labels, -100 if missing.
        columns: columns by name. Those of codecs are [n, width] ([n] at width 1), or `Lists` of n if the number of
            values varies; n is T, P or R for a signal that is recorded per token, position or row.
        questions: int64 [R], the question's row in the files, if rows are windows of a question's context; None after
            reading.
    """

    rows: NDArray[np.int64]
    token_offsets: Offsets
    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.uint8] | None
    position_offsets: Offsets
    positions: NDArray[np.int32]
    labels: NDArray[np.int32]
    columns: dict[str, Values] = field(default_factory=dict)
    questions: NDArray[np.int64] | None = None

    def offsets(self, per: Per) -> Offsets:
        """Return the offsets of rows, int64 [R + 1], in a column of a signal that is recorded per token, position or
        row."""
        return offsets_per(per, self.token_offsets, self.position_offsets)


def offsets_per(per: Per, token_offsets: Offsets, position_offsets: Offsets) -> Offsets:
    """Return the offsets of rows, [R + 1], in a column with one entry per token, recorded position or row."""
    return {"token": token_offsets, "position": position_offsets, "row": np.arange(len(token_offsets))}[per]
