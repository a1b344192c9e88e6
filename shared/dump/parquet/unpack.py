"""Row groups from Arrow tables and flat columns (the reverse of `tables.to_table`), without a Python object per row."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shared.dump.codecs import Column
from shared.dump.manifest import Manifest
from shared.dump.parquet.tables import plain_fields
from shared.dump.rowgroup import MISSING, Flat, Lists, Offsets, RowGroup, check_lengths, offsets_per


def from_table(manifest: Manifest, table: pa.Table, columns: Sequence[str]) -> RowGroup:
    """Return the row group of a table that has the plain columns and these columns of codecs.

    Raises:
        ValueError: if the lengths of a column's lists do not fit the rows (a damaged file).
    """
    return from_columns(manifest, flat_columns(manifest, table), columns)


def flat_columns(manifest: Manifest, table: pa.Table) -> dict[str, Flat]:
    """Return the columns of a table as flat arrays, by name."""
    known = columns_of(manifest)
    return {name: _flat(_contiguous(table[name]), known.get(name)) for name in table.column_names}


def columns_of(manifest: Manifest) -> dict[str, Column]:
    """Return the type and width of every column of a dump, by name, except those in which numbers may be missing."""
    plain = (Column(field.name, field.dtype) for field in plain_fields(manifest) if not field.holds_gold)
    codecs = (column for signal in manifest.signals for column in signal.columns)
    return {column.name: column for column in (*plain, *codecs)}


def from_columns(manifest: Manifest, flat: Mapping[str, Flat], columns: Sequence[str]) -> RowGroup:
    """Return the row group of flat columns: the plain columns and these columns of codecs.

    Raises:
        ValueError: if the lengths of a column's lists do not fit the rows (a damaged file).
    """
    token_offsets, input_ids = flat["input_ids"].list_offsets(), flat["input_ids"].numbers()
    places = manifest.layout.unpack(flat, manifest.labelled, token_offsets, input_ids)
    per_column = manifest.per_column
    for name in columns:
        check_lengths(name, flat, offsets_per(per_column[name], token_offsets, places.offsets))
    if manifest.pairs:
        check_lengths("token_type_ids", flat, token_offsets)
    return RowGroup(
        rows=flat["row"].numbers(),
        token_offsets=token_offsets,
        input_ids=input_ids,
        token_type_ids=flat["token_type_ids"].numbers() if manifest.pairs else None,
        position_offsets=places.offsets,
        positions=places.positions,
        labels=places.labels,
        columns={**places.columns, **{name: flat[name].values for name in columns}},
    )


def check_row_numbers(numbers: NDArray[np.int64], rows: range) -> None:
    """Check that the numbers of a shard's rows are among those that belong into it.

    Raises:
        ValueError: if one is not. (In format versions 1 to 5 nothing else tells a shard from its neighbours.)
    """
    if len(numbers) and not rows.start <= numbers.min() <= numbers.max() < rows.stop:
        raise ValueError(
            f"it has rows {numbers.min()} to {numbers.max()}, but this shard's are {rows.start} to {rows.stop - 1}"
        )


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
    """Return an array's numbers, [n] or [n, width], without a copy if none is missing."""
    if column is None or column.is_list or column.width == 1:
        return (array.fill_null(MISSING) if array.null_count else array).to_numpy(zero_copy_only=False)
    assert column.width is not None
    data = np.frombuffer(array.buffers()[1], np.dtype(column.dtype))
    start = array.offset * column.width
    return data[start : start + len(array) * column.width].reshape(-1, column.width)
