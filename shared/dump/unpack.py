"""Plain Arrow tables -> row groups of flat arrays: what `rowgroup.to_table` made, and no Python object a row."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shared.dump.codecs import Column, VectorCodec
from shared.dump.manifest import Manifest
from shared.dump.rowgroup import MISSING, Int32, Lists, Offsets, RowGroup, Values


def from_table(manifest: Manifest, table: pa.Table, columns: Sequence[str]) -> RowGroup:
    """A table with the plain columns and the codecs' columns named, flat and without a Python object a row.

    Raises:
        ValueError: where a column has other lengths than the rows have (a damaged file).
    """
    arrays = {name: _contiguous(table[name]) for name in table.column_names}
    token_offsets, input_ids = _flat(arrays["input_ids"], "int32", 1)
    position_offsets, positions, labels = _RECORDED[manifest.recorded](manifest, arrays, token_offsets, input_ids)
    codec_columns = {
        column.name: (column, token_offsets if isinstance(signal, VectorCodec) else position_offsets)
        for signal in manifest.signals
        for column in signal.columns
    }
    return RowGroup(
        rows=arrays["row"].to_numpy(),
        token_offsets=token_offsets,
        input_ids=input_ids,
        token_type_ids=_token_types(arrays["token_type_ids"], token_offsets) if manifest.pairs else None,
        position_offsets=position_offsets,
        positions=positions,
        labels=labels,
        columns={name: _column_values(arrays[name], *codec_columns[name]) for name in columns},
    )


def _token_types(array: pa.ListArray, token_offsets: Offsets) -> NDArray[np.uint8]:
    offsets, types = _flat(array, "uint8", 1)
    _check_lengths("token_type_ids", offsets, token_offsets)
    return types


def _recorded_next_token(
    manifest: Manifest, arrays: dict[str, Any], token_offsets: Offsets, input_ids: Int32
) -> tuple[Offsets, Int32, Int32]:
    lengths = np.maximum(np.diff(token_offsets) - 1, 0)
    position_offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(position_offsets[-1]) - np.repeat(position_offsets[:-1], lengths)
    labels = input_ids[np.repeat(token_offsets[:-1], lengths) + within + 1]
    return position_offsets, within.astype(np.int32), labels


def _recorded_listed_next_token(
    manifest: Manifest, arrays: dict[str, Any], token_offsets: Offsets, input_ids: Int32
) -> tuple[Offsets, Int32, Int32]:
    position_offsets, positions = _flat(arrays["positions"], "int32", 1)
    labels = input_ids[np.repeat(token_offsets[:-1], np.diff(position_offsets)) + positions + 1]
    return position_offsets, positions, labels


def _recorded_listed(
    manifest: Manifest, arrays: dict[str, Any], token_offsets: Offsets, input_ids: Int32
) -> tuple[Offsets, Int32, Int32]:
    position_offsets, positions = _flat(arrays["positions"], "int32", 1)
    if manifest.gold == "none":
        return position_offsets, positions, np.full(len(positions), MISSING, np.int32)
    _check_lengths("labels", _offsets(arrays["labels"]), position_offsets)
    return position_offsets, positions, arrays["labels"].flatten().fill_null(MISSING).to_numpy()


def _recorded_row(
    manifest: Manifest, arrays: dict[str, Any], token_offsets: Offsets, input_ids: Int32
) -> tuple[Offsets, Int32, Int32]:
    count = len(token_offsets) - 1
    missing = np.full(count, MISSING, np.int32)
    labels = missing if manifest.gold == "none" else arrays["label"].fill_null(MISSING).to_numpy()
    return np.arange(count + 1, dtype=np.int64), np.zeros(count, np.int32), labels


def _recorded_none(
    manifest: Manifest, arrays: dict[str, Any], token_offsets: Offsets, input_ids: Int32
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


def _column_values(array: pa.ListArray, column: Column, expected: Offsets) -> Values:
    if column.width is not None:
        offsets, values = _flat(array, column.dtype, column.width)
        _check_lengths(column.name, offsets, expected)
        return values
    _check_lengths(column.name, _offsets(array), expected)
    offsets, values = _flat(array.flatten(), column.dtype, 1)
    return Lists(values, offsets)


def _check_lengths(name: str, offsets: Offsets, expected: Offsets) -> None:
    if not np.array_equal(offsets, expected):
        raise ValueError(f"the lists of column {name!r} have other lengths than their rows")


def _offsets(array: pa.ListArray) -> Offsets:
    offsets = array.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0]


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _flat(array: pa.ListArray, dtype: str, width: int) -> tuple[Offsets, NDArray[Any]]:
    """(offsets from 0, values [n] or [n, width]) of a list array, without copying the values."""
    offsets, values = _offsets(array), array.flatten()
    if width == 1:
        return offsets, values.to_numpy(zero_copy_only=False)
    data = np.frombuffer(values.buffers()[1], np.dtype(dtype))
    start = values.offset * width
    return offsets, data[start : start + len(values) * width].reshape(-1, width)
