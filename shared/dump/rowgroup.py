"""Row groups in memory: flat arrays, and no Python object a row.

Shapes: R rows, T tokens of all rows, P recorded positions of all rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.dump.codecs import Column, counts_of
from shared.dump.signals import Per

# A gold label that nobody knows: what torch's cross-entropy ignores, and a null in the files.
MISSING = -100

Offsets = NDArray[np.int64]
Int32 = NDArray[np.int32]


class Lists:
    """A list column in memory: the values of all positions one after the other, and where each position's begin.

    Cut and joined like an array of one list a position.

    Attributes:
        values: [E].
        offsets: int64 [N + 1]; position n's values are values[offsets[n]:offsets[n + 1]].
    """

    def __init__(self, values: NDArray[Any], offsets: Offsets) -> None:
        self.values, self.offsets = values, offsets

    @classmethod
    def of_counts(cls, values: NDArray[Any], counts: NDArray[Any]) -> "Lists":
        """From how many values each position has."""
        return cls(values, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))

    @property
    def counts(self) -> NDArray[np.int32]:
        """How many values each position has, [N]."""
        return np.diff(self.offsets).astype(np.int32)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, part: slice) -> "Lists":
        start, stop, _ = part.indices(len(self))
        offsets = self.offsets[start : max(start, stop) + 1]
        return Lists(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])


Values = NDArray[Any] | Lists


def join(parts: Sequence[Values]) -> Values:
    """Several pieces of one column, one after the other."""
    if not isinstance(parts[0], Lists):
        return np.concatenate(parts)  # type: ignore[arg-type]
    lists = [part for part in parts if isinstance(part, Lists)]
    return Lists.of_counts(
        np.concatenate([part.values for part in lists]), np.concatenate([part.counts for part in lists])
    )


def from_flat(columns: Sequence[Column], flat: Mapping[str, NDArray[Any]]) -> dict[str, Values]:
    """What a codec's `encode` gives, as arrays -> one entry a column."""
    return {
        column.name: Lists.of_counts(flat[column.name], flat[counts_of(column.name)])
        if column.is_list
        else flat[column.name]
        for column in columns
    }


def to_flat(columns: Mapping[str, Values]) -> dict[str, NDArray[Any]]:
    """One entry a column -> what a codec's `decode` takes, as arrays."""
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
        values: of all rows, one after the other; MISSING in place of a missing number.
        offsets: int64 [R + 1]; row r has values[offsets[r]:offsets[r + 1]]. None where each row has one value.
    """

    values: Values
    offsets: Offsets | None = None

    def numbers(self) -> NDArray[Any]:
        """The values of a column that has no lists but its rows'."""
        assert not isinstance(self.values, Lists)
        return self.values

    def list_offsets(self) -> Offsets:
        """Where the rows' lists begin and end, of a column that has a list for each row."""
        assert self.offsets is not None
        return self.offsets


def check_lengths(name: str, columns: Mapping[str, Flat], expected: Offsets) -> None:
    """Raises ValueError where the lists of a column have other lengths than these (a damaged file)."""
    found = columns[name].list_offsets()
    if found is not expected and not np.array_equal(found, expected):
        raise ValueError(f"the lists of column {name!r} have other lengths than their rows")


@dataclass
class RowGroup:
    """Some rows, flat.

    Attributes:
        rows: int64 [R], row numbers of the corpus.
        token_offsets: int64 [R + 1]; row r's tokens are input_ids[token_offsets[r]:token_offsets[r + 1]].
        input_ids: int32 [T].
        token_type_ids: uint8 [T], or None where rows are no pairs.
        position_offsets: int64 [R + 1], likewise into the recorded positions.
        positions: int32 [P], indices into the row's own tokens.
        labels: int32 [P], gold labels, -100 where missing.
        columns: the codecs' columns, [n, width] ([n] at width 1), `Lists` of n where there are different numbers of
            values; n is T, P or R, as what the signal is recorded per.
        questions: int64 [R], where rows are windows of a question's context: the question's row in the files. A row
            group that is read again is without them.
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
        """int64 [R + 1], where each row's entries begin and end in a column of a signal that is recorded per this."""
        return offsets_per(per, self.token_offsets, self.position_offsets)


def offsets_per(per: Per, token_offsets: Offsets, position_offsets: Offsets) -> Offsets:
    """The offsets [R + 1] of entries of which there is one for each token, recorded position or row."""
    return {"token": token_offsets, "position": position_offsets, "row": np.arange(len(token_offsets))}[per]
