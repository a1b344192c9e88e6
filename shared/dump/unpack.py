"""Columns of a row group, flat -> `RowGroup`: what `rowgroup.to_table` made, and no Python object a row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shared.dump.codecs import Column
from shared.dump.manifest import Manifest
from shared.dump.rowgroup import MISSING, Int32, Lists, Offsets, RowGroup, Values, offsets_per

# The types of columns that are no codec's and have no number missing.
PLAIN_COLUMNS = {
    name: Column(name, dtype)
    for name, dtype in {"row": "int64", "input_ids": "int32", "token_type_ids": "uint8", "positions": "int32"}.items()
}


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


def from_table(manifest: Manifest, table: pa.Table, columns: Sequence[str]) -> RowGroup:
    """A table with the plain columns and the codecs' columns named, flat and without a Python object a row.

    Raises:
        ValueError: where a column has other lengths than the rows have (a damaged file).
    """
    return from_columns(manifest, flat_columns(manifest, table), columns)


def flat_columns(manifest: Manifest, table: pa.Table) -> dict[str, Flat]:
    """A table's columns."""
    known = columns_of(manifest)
    return {name: _flat(_contiguous(table[name]), known.get(name)) for name in table.column_names}


def columns_of(manifest: Manifest) -> dict[str, Column]:
    """What every column of a dump holds, by name: all but those in which numbers may be missing."""
    return PLAIN_COLUMNS | {column.name: column for signal in manifest.signals for column in signal.columns}


def from_columns(manifest: Manifest, flat: Mapping[str, Flat], columns: Sequence[str]) -> RowGroup:
    """The plain columns and the codecs' columns named as one row group.

    Raises:
        ValueError: where a column has other lengths than the rows have (a damaged file).
    """
    token_offsets, input_ids = _offsets(flat["input_ids"]), flat["input_ids"].numbers()
    position_offsets, positions, labels = _RECORDED[manifest.recorded](manifest, flat, token_offsets, input_ids)
    per_column = manifest.per_column
    for name in columns:
        _check_lengths(name, flat, offsets_per(per_column[name], token_offsets, position_offsets))
    if manifest.pairs:
        _check_lengths("token_type_ids", flat, token_offsets)
    return RowGroup(
        rows=flat["row"].numbers(),
        token_offsets=token_offsets,
        input_ids=input_ids,
        token_type_ids=flat["token_type_ids"].numbers() if manifest.pairs else None,
        position_offsets=position_offsets,
        positions=positions,
        labels=labels,
        columns={name: flat[name].values for name in columns},
    )


def _recorded_next_token(
    manifest: Manifest, flat: Mapping[str, Flat], token_offsets: Offsets, input_ids: Int32
) -> tuple[Offsets, Int32, Int32]:
    lengths = np.maximum(np.diff(token_offsets) - 1, 0)
    position_offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(position_offsets[-1]) - np.repeat(position_offsets[:-1], lengths)
    labels = input_ids[np.repeat(token_offsets[:-1], lengths) + within + 1]
    return position_offsets, within.astype(np.int32), labels


def _recorded_listed_next_token(
    manifest: Manifest, flat: Mapping[str, Flat], token_offsets: Offsets, input_ids: Int32
) -> tuple[Offsets, Int32, Int32]:
    position_offsets, positions = _offsets(flat["positions"]), flat["positions"].numbers()
    labels = input_ids[np.repeat(token_offsets[:-1], np.diff(position_offsets)) + positions + 1]
    return position_offsets, positions, labels


def _recorded_listed(
    manifest: Manifest, flat: Mapping[str, Flat], token_offsets: Offsets, input_ids: Int32
) -> tuple[Offsets, Int32, Int32]:
    position_offsets, positions = _offsets(flat["positions"]), flat["positions"].numbers()
    if manifest.gold == "none":
        return position_offsets, positions, np.full(len(positions), MISSING, np.int32)
    _check_lengths("labels", flat, position_offsets)
    return position_offsets, positions, flat["labels"].numbers()


def _recorded_row(
    manifest: Manifest, flat: Mapping[str, Flat], token_offsets: Offsets, input_ids: Int32
) -> tuple[Offsets, Int32, Int32]:
    count = len(token_offsets) - 1
    missing = np.full(count, MISSING, np.int32)
    labels = missing if manifest.gold == "none" else flat["label"].numbers()
    return np.arange(count + 1, dtype=np.int64), np.zeros(count, np.int32), labels


def _recorded_none(
    manifest: Manifest, flat: Mapping[str, Flat], token_offsets: Offsets, input_ids: Int32
) -> tuple[Offsets, Int32, Int32]:
    return np.zeros(len(token_offsets), np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32)


# (manifest, arrays, token offsets, input ids) -> position offsets [R + 1], positions [P], labels [P].
_RECORDED: dict[str, Callable[..., tuple[Offsets, Int32, Int32]]] = {
    "next-token": _recorded_next_token,
    "listed-next-token": _recorded_listed_next_token,
    "listed": _recorded_listed,
    "spans": _recorded_listed,
    "row": _recorded_row,
    "none": _recorded_none,
}


def _check_lengths(name: str, flat: Mapping[str, Flat], expected: Offsets) -> None:
    found = _offsets(flat[name])
    if found is not expected and not np.array_equal(found, expected):
        raise ValueError(f"the lists of column {name!r} have other lengths than their rows")


def _offsets(column: Flat) -> Offsets:
    assert column.offsets is not None
    return column.offsets


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _flat(array: pa.Array, column: Column | None) -> Flat:
    if not pa.types.is_list(array.type):
        return Flat(_numbers(array, column))
    values = array.flatten()
    if not pa.types.is_list(values.type):
        return Flat(_numbers(values, column), _offsets_of(array))
    return Flat(Lists(_numbers(values.flatten(), column), _offsets_of(values)), _offsets_of(array))


def _offsets_of(array: pa.ListArray) -> Offsets:
    offsets = array.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0]


def _numbers(array: pa.Array, column: Column | None) -> NDArray[Any]:
    """An array's numbers, [n] or [n, width], without copying them where none is missing."""
    if column is None or column.is_list or column.width == 1:
        return (array.fill_null(MISSING) if array.null_count else array).to_numpy(zero_copy_only=False)
    assert column.width is not None
    data = np.frombuffer(array.buffers()[1], np.dtype(column.dtype))
    start = array.offset * column.width
    return data[start : start + len(array) * column.width].reshape(-1, column.width)
