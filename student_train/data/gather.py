"""Gather any rows of several row groups into one, from flat arrays to flat arrays, without Python objects per value.

Shapes: R rows of all groups, B wanted rows, U units (tokens, positions or values of lists) of the wanted rows.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.dump.rowgroup import Lists, RowGroup, Values
from shared.dump.signals import Per

# Rows of a column with more bytes than this are copied one by one, which takes about 500 ns a row and then the time of
# a memory copy; shorter rows are copied by indices, which takes about 3 ns a unit (measured on int32).
_WIDE_ROW_BYTES = 1024

Int64 = NDArray[np.int64]


class _Ranges:
    """One column of all row groups, in which each row has a range of units."""

    def __init__(self, values: Sequence[NDArray[Any]], offsets: Sequence[Int64]) -> None:
        self.counts = np.concatenate([np.diff(each) for each in offsets])
        self._is_wide = sum(part.nbytes for part in values) > _WIDE_ROW_BYTES * len(self.counts)
        if not self._is_wide and len(values) > 1:
            before = np.cumsum([0, *map(len, values[:-1])])
            offsets = [each + first for each, first in zip(offsets, before.tolist(), strict=True)]
            values = [np.concatenate(values)]
        self._values = values
        self._starts = np.concatenate([each[:-1] for each in offsets])

    def take(self, rows_B: Int64, groups_B: Int64) -> NDArray[Any]:
        """The units of the rows, one row after the other, [U, ...]."""
        starts, counts = self._starts[rows_B], self.counts[rows_B]
        if self._is_wide:
            places = zip(groups_B.tolist(), starts.tolist(), (starts + counts).tolist(), strict=True)
            return np.concatenate([self._values[group][start:stop] for group, start, stop in places])
        index = np.repeat(starts - np.cumsum(counts) + counts, counts)
        index += np.arange(len(index))
        # No index is out of bounds; with mode="clip" numpy needs no second buffer.
        return self._values[0].take(index, axis=0, mode="clip")


class Rows:
    """The rows of several row groups, numbered consecutively, from which batches are gathered.

    Args:
        per_column: column name -> whether it has an entry per token, position or row; "position" if it is not listed.

    Attributes:
        lengths: int64 [R], the number of tokens of each row.
    """

    def __init__(self, groups: Sequence[RowGroup], per_column: Mapping[str, Per]) -> None:
        tokens = [group.token_offsets for group in groups]
        positions = [group.position_offsets for group in groups]
        self._group_of_row = np.repeat(np.arange(len(groups)), [len(group.rows) for group in groups])
        self._rows = np.concatenate([group.rows for group in groups])
        self._input_ids = _Ranges([group.input_ids for group in groups], tokens)
        types = [group.token_type_ids for group in groups if group.token_type_ids is not None]
        self._types = _Ranges(types, tokens) if types else None
        self._positions = _Ranges([group.positions for group in groups], positions)
        self._labels = _Ranges([group.labels for group in groups], positions)
        self._columns = {
            name: _column(
                [group.columns[name] for group in groups],
                [group.offsets(per_column.get(name, "position")) for group in groups],
            )
            for name in groups[0].columns
        }
        self.lengths = self._input_ids.counts

    @cached_property
    def _by_number(self) -> Int64:
        return np.argsort(self._rows, kind="stable")

    def places(self, numbers: Int64) -> Int64:
        """The places among these rows of the rows with these numbers in the corpus, of any shape; -1 for others."""
        order = self._by_number
        found = order[np.searchsorted(self._rows, numbers, sorter=order).clip(max=len(order) - 1)]
        return np.where(self._rows[found] == numbers, found, -1)

    def take(self, rows_B: Int64) -> RowGroup:
        """The rows with these numbers, in this order, as one row group."""
        groups_B = self._group_of_row[rows_B]

        def taken(column: _Ranges) -> NDArray[Any]:
            return column.take(rows_B, groups_B)

        return RowGroup(
            rows=self._rows[rows_B],
            token_offsets=_offsets(self.lengths[rows_B]),
            input_ids=taken(self._input_ids),
            token_type_ids=taken(self._types) if self._types else None,
            position_offsets=_offsets(self._positions.counts[rows_B]),
            positions=taken(self._positions),
            labels=taken(self._labels),
            columns={
                name: taken(column[0]) if len(column) == 1 else Lists.of_counts(taken(column[0]), taken(column[1]))
                for name, column in self._columns.items()
            },
        )


def _column(parts: Sequence[Values], offsets: Sequence[Int64]) -> tuple[_Ranges, ...]:
    """The values of a column; for a list column, the values of all lists and the length of each list."""
    lists = [part for part in parts if isinstance(part, Lists)]
    if not lists:
        return (_Ranges([part for part in parts if not isinstance(part, Lists)], offsets),)
    of_rows = [part.offsets[each] for part, each in zip(lists, offsets, strict=True)]
    return _Ranges([part.values for part in lists], of_rows), _Ranges([part.counts for part in lists], offsets)


def _offsets(counts: Int64) -> Int64:
    return np.concatenate([[0], np.cumsum(counts)])
