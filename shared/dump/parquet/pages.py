"""Columns of a row group as flat arrays, read directly from the file's pages.

Arrow reads every kind of column, and builds lists entry by entry. This module reads the kinds that most of a dump
consists of (numbers and fixed-size binaries, none of them missing, one or a list of them per row) and leaves the others
to Arrow. Pages that are not compressed are verified and then used in place, without a copy, which takes a third of
Arrow's time (`just bench-train`).

A page is a header (a Thrift struct: sizes, checksum, number of values), then, in a column of lists, two levels for each
value: whether a row begins with it, and whether the value exists (each as a length and runs of bits), then the values.

Shapes: R rows, N values of all rows.
"""

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import RawIOBase, UnsupportedOperation
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.dump.codecs import Column
from shared.dump.parquet.checksum import crc32
from shared.dump.rowgroup import Flat, Offsets

_PHYSICAL = {"INT32": "<i4", "INT64": "<i8", "FLOAT": "<f4"}
_CODECS = {"UNCOMPRESSED": None, "ZSTD": "zstd", "LZ4": "lz4_raw"}
_PLAIN, _BYTE_STREAM_SPLIT = 0, 9
# The encodings of values and of levels.
_ENCODINGS = {"PLAIN", "BYTE_STREAM_SPLIT", "RLE"}
# Smaller chunks are copied. (Each mapped one takes a file descriptor; two windows of the trainer have about 128
# chunks.)
_LEAST_MAPPED = 2**18
# The bits of each byte value, lowest bit first, as one byte per bit.
_BITS = [bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256)]


@dataclass(frozen=True)
class _Page:
    values: int
    encoding: int
    levels: tuple[bytes, ...]
    body: NDArray[np.uint8]


class GroupPages:
    """The pages of a row group of a Parquet file that is open for reading."""

    def __init__(self, file: RawIOBase, metadata: pq.FileMetaData, number: int) -> None:
        self._file, self._schema, self._group = file, metadata.schema, metadata.row_group(number)
        self._descriptor = _descriptor(file)
        self._leaves = {self._schema.column(leaf).path: leaf for leaf in range(metadata.num_columns)}
        # Columns with the same number of values in each row have the same levels, byte for byte.
        self._offsets: dict[tuple[tuple[int, tuple[bytes, ...]], ...], Offsets] = {}

    def read(self, column: Column) -> Flat | None:
        """Return a column, or None if its kind is left to Arrow. The values may be read-only.

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
            pages = list(_pages(self._bytes(chunk), _CODECS[chunk.compression], depth))
            offsets = self._rows(pages) if depth else None
            parts = [_numbers(page, stored, column.dtype) for page in pages]
        except (LookupError, TypeError, ValueError, OverflowError, OSError, pa.ArrowException) as error:
            raise ValueError(f"column {column.name!r}: {error}") from None
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        count = sum(page.values for page in pages)
        if count != chunk.num_values or len(values) != (count if offsets is None else offsets[-1]):
            raise ValueError(f"column {column.name!r}: the number of values differs from that in the page headers")
        return Flat(values.astype(column.dtype, copy=False), offsets)

    def _bytes(self, chunk: pq.ColumnChunkMetaData) -> NDArray[np.uint8]:
        start, size = chunk.data_page_offset, chunk.total_compressed_size
        if self._descriptor is None:
            self._file.seek(start)
            return np.frombuffer(self._file.read(size) or b"", np.uint8)
        if _CODECS[chunk.compression] is not None or size < _LEAST_MAPPED:
            return np.frombuffer(os.pread(self._descriptor, size, start), np.uint8)
        before = start % mmap.ALLOCATIONGRANULARITY
        # The mapping stays open as long as an array uses it.
        mapped = mmap.mmap(self._descriptor, before + size, access=mmap.ACCESS_READ, offset=start - before)
        return np.frombuffer(mapped, np.uint8)[before:]

    def _rows(self, pages: list[_Page]) -> Offsets:
        key = tuple((page.values, page.levels) for page in pages)
        if key not in self._offsets:
            begins_N, is_there_N = (
                np.concatenate([_bits(page.levels[which], page.values) for page in pages]) for which in (0, 1)
            )
            ends = np.append(np.flatnonzero(begins_N == 0), len(begins_N))
            if not is_there_N.all():
                ends = np.concatenate([[0], np.cumsum(is_there_N, dtype=np.int64)])[ends]
            self._offsets[key] = ends
        return self._offsets[key]


def _descriptor(file: RawIOBase) -> int | None:
    """Return the system's file descriptor; None for a file that is not on this machine."""
    try:
        return file.fileno()
    except UnsupportedOperation:
        return None


def _is_known(chunk: pq.ColumnChunkMetaData, column: pq.ColumnSchema) -> bool:
    """Whether a column is of a kind that is read here: no missing values, no lists in lists."""
    depth = column.max_repetition_level
    return (
        depth <= 1
        and column.max_definition_level == depth
        and chunk.physical_type in (*_PHYSICAL, "FIXED_LEN_BYTE_ARRAY")
        and chunk.compression in _CODECS
        and set(chunk.encodings) <= _ENCODINGS
    )


def _pages(chunk: NDArray[np.uint8], codec: str | None, depth: int) -> Iterator[_Page]:
    """Yield the data pages of a column of a row group.

    Raises:
        ValueError, or another exception such as IndexError, for invalid bytes.
    """
    data, at = chunk.data, 0
    while at < len(data):
        head, at = _struct(data, at)
        # Fields 2 and 3: bytes before and after compression; 4: checksum; 5: the data page's header, with fields 1 and
        # 2: number of values and encoding.
        size, stored = head[2], head[3]
        body = chunk[at : at + stored]
        at += stored
        if len(body) != stored or crc32(body) != head[4] & 0xFFFFFFFF:
            raise ValueError("CRC checksum verification failed: a page has changed since it was written")
        if codec is not None:
            body = np.frombuffer(pa.Codec(codec).decompress(body, size), np.uint8)
        levels = []
        for _ in range(2 * depth):
            length = 4 + int.from_bytes(body[:4].tobytes(), "little")
            levels.append(body[4:length].tobytes())
            body = body[length:]
        yield _Page(head[5][1], head[5][2], tuple(levels), body)


def _numbers(page: _Page, stored: np.dtype[Any], dtype: str) -> NDArray[Any]:
    """Return a page's values, [N] or [N, width], of the type `stored`, or already of `dtype` if that is easier."""
    body = page.body
    if page.encoding == _BYTE_STREAM_SPLIT:
        planes = body.reshape(stored.itemsize, -1)
        if dtype == "uint8":  # the other planes are zeros
            return planes[0]
        body = np.ascontiguousarray(planes.T).ravel()
    elif page.encoding != _PLAIN:
        raise ValueError(f"a page has encoding {page.encoding}")
    # Values may be at any address in a file; numpy and torch need them at multiples of their size.
    return np.require(body.view(stored.base), requirements="A").reshape(-1, *stored.shape)


def _bits(runs: bytes, count: int) -> NDArray[np.uint8]:
    """Return [count] bits from runs, which are one repeated bit, or bytes of eight bits each."""
    parts, at, missing = [], 0, count
    while missing > 0:
        head, at = _varint(runs, at)
        number = head >> 1
        if head & 1:
            parts += [_BITS[byte] for byte in runs[at : at + number]]
            at, number = at + number, 8 * number
        else:
            parts.append(runs[at : at + 1] * number)
            at += 1
        missing -= number
    found = np.frombuffer(b"".join(parts), np.uint8)[:count]
    if len(found) != count:
        raise ValueError("a page's levels are truncated")
    return found


def _struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """Return (fields by number, index after the struct) of a struct in Thrift's compact protocol."""
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head < 16:
            raise ValueError("a page's header has fields out of order")
        number += head >> 4
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind in (4, 5, 6):
            value, at = _varint(data, at)
            fields[number] = value >> 1 ^ -(value & 1)
        elif kind == 8:
            length, at = _varint(data, at)
            at += length
        elif kind == 12:
            fields[number], at = _struct(data, at)
        else:
            raise ValueError(f"a page's header has a field of unknown kind {kind}")
    return fields, at + 1


def _varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    """Return (value, index after it) of an integer of variable length."""
    value, shift = data[at], 7
    while value >> shift:
        at += 1
        value += data[at] - 1 << shift
        shift += 7
    return value, at + 1
