"""Columns of a row group as flat arrays, read directly from the file's pages.

Arrow reads every kind of column, and builds lists entry by entry. This module reads the kinds that most of a dump
consists of (numbers and fixed-size binaries, none of them missing, one or a list of them per row) and leaves the others
to Arrow. Pages that are not compressed are verified and then used without another copy, which takes a third of Arrow's
time (`just bench-train`).

The body of a page in a column of lists begins with two levels for each value: whether a row begins with it, and whether
the value exists (each as a length and runs of bits). Then come the values.

Shapes: R rows, N values of all rows.
"""

from io import RawIOBase
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.dump.codecs import Column
from shared.dump.parquet.headers import BYTE_STREAM_SPLIT, PLAIN, Page, bytes_at, data_pages, place_of, varint
from shared.dump.rowgroup import Flat, Offsets

_PHYSICAL = {"INT32": "<i4", "INT64": "<i8", "FLOAT": "<f4"}
_CODECS = {"UNCOMPRESSED": None, "ZSTD": "zstd", "LZ4": "lz4_raw"}
# The encodings of values and of levels.
_ENCODINGS = {"PLAIN", "BYTE_STREAM_SPLIT", "RLE"}
# The bits of each byte value, lowest bit first, as one byte per bit.
_BITS = [bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256)]


class _Values(NamedTuple):
    """A page's values as stored, and the levels before them."""

    number: int
    encoding: int
    levels: tuple[bytes, ...]
    body: NDArray[np.uint8]


class GroupPages:
    """The pages of a row group of a Parquet file that is open for reading."""

    def __init__(self, file: RawIOBase, metadata: pq.FileMetaData, number: int) -> None:
        self._file, self._schema, self._group = file, metadata.schema, metadata.row_group(number)
        self._leaves = {self._schema.column(leaf).path: leaf for leaf in range(metadata.num_columns)}
        # Columns with the same number of values in each row have the same levels, byte for byte.
        self._offsets: dict[tuple[tuple[int, tuple[bytes, ...]], ...], Offsets] = {}

    def read(self, column: Column) -> Flat | None:
        """Return a column, or None if its kind is left to Arrow.

        Raises:
            ValueError: for damage: a wrong checksum or length, or invalid bytes.
        """
        leaf = self._leaves.get(column.name, self._leaves.get(f"{column.name}.list.element"))
        if leaf is None or not _is_known(self._group.column(leaf), self._schema.column(leaf)):
            return None
        chunk, depth = self._group.column(leaf), self._schema.column(leaf).max_repetition_level
        number = _PHYSICAL.get(chunk.physical_type, column.dtype)
        stored = np.dtype(number if column.width == 1 else (number, column.width))
        try:
            found = data_pages(chunk, bytes_at(self._file, *place_of(chunk)))
            pages = [_values(page, _CODECS[chunk.compression], depth) for page in found]
            offsets = self._rows(pages) if depth else None
            parts = [_numbers(page, stored, column.dtype) for page in pages]
        except (LookupError, TypeError, ValueError, OSError, pa.ArrowException) as error:
            raise ValueError(f"column {column.name!r}: {error}") from None
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if len(values) != (chunk.num_values if offsets is None else offsets[-1]):
            raise ValueError(f"column {column.name!r}: the number of values differs from that in the page headers")
        return Flat(values.astype(column.dtype, copy=False), offsets)

    def _rows(self, pages: list[_Values]) -> Offsets:
        key = tuple((page.number, page.levels) for page in pages)
        if key not in self._offsets:
            begins_N, is_there_N = (
                np.concatenate([_bits(page.levels[which], page.number) for page in pages]) for which in (0, 1)
            )
            ends = np.append(np.flatnonzero(begins_N == 0), len(begins_N))
            if not is_there_N.all():
                ends = np.concatenate([[0], np.cumsum(is_there_N, dtype=np.int64)])[ends]
            self._offsets[key] = ends
        return self._offsets[key]


def _is_known(chunk: pq.ColumnChunkMetaData, column: pq.ColumnSchema) -> bool:
    """Whether a column is of a kind that is read here: no missing values, no lists in lists."""
    depth = column.max_repetition_level
    return (
        depth <= 1
        and column.max_definition_level == depth
        and chunk.physical_type in (*_PHYSICAL, "FIXED_LEN_BYTE_ARRAY")
        and chunk.compression in _CODECS
        and _ENCODINGS.issuperset(chunk.encodings)
    )


def _values(page: Page, codec: str | None, depth: int) -> _Values:
    """Return the values of a page, after its levels."""
    body = page.body
    if codec is not None:
        body = np.frombuffer(pa.Codec(codec).decompress(body, page.size), np.uint8)
    levels = []
    for _ in range(2 * depth):
        length = 4 + int.from_bytes(body[:4].tobytes(), "little")
        levels.append(body[4:length].tobytes())
        body = body[length:]
    return _Values(page.values, page.encoding, tuple(levels), body)


def _numbers(page: _Values, stored: np.dtype[Any], dtype: str) -> NDArray[Any]:
    """Return a page's values, [N] or [N, width], of the type `stored`, or already of `dtype` if that is easier."""
    body = page.body
    if page.encoding == BYTE_STREAM_SPLIT:
        planes = body.reshape(stored.itemsize, -1)
        if dtype == "uint8":  # the other planes are zeros
            return planes[0]
        body = np.ascontiguousarray(planes.T).ravel()
    elif page.encoding != PLAIN:
        raise ValueError(f"a page has encoding {page.encoding}")
    # Values may be at any address in a file; numpy and torch need them at multiples of their size.
    return np.require(body.view(stored.base), requirements="A").reshape(-1, *stored.shape)


def _bits(runs: bytes, count: int) -> NDArray[np.uint8]:
    """Return [count] bits from runs, which are one repeated bit, or bytes of eight bits each."""
    parts, at, missing = [], 0, count
    while missing > 0:
        head, at = varint(runs, at)
        number = head >> 1
        if head & 1:
            parts += [_BITS[byte] for byte in runs[at : at + number]]
            at, number = at + number, 8 * number
        else:
            parts.append(runs[at : at + 1] * min(number, missing))
            at += 1
        missing -= number
    found = np.frombuffer(b"".join(parts), np.uint8)[:count]
    if len(found) != count:
        raise ValueError("a page's levels are truncated")
    return found
