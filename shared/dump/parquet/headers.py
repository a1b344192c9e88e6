"""The pages of a column of a row group, as they lie in the file, each checked before it is used.

A page is a header (a Thrift struct: sizes, checksum, number of values, encoding) and a body. The checksum covers the
body alone, so what the header says is compared with the file's footer: in a header, a page's type, encoding, sizes and
number of values are all that a reader uses. (Arrow skips a page of unknown type, and a header without a checksum is
read unchecked.)
"""

import os
from io import RawIOBase, UnsupportedOperation
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.dump.parquet.checksum import crc32

PLAIN, RLE, BYTE_STREAM_SPLIT = 0, 3, 9
_DICTIONARIES = {2: "PLAIN_DICTIONARY", 8: "RLE_DICTIONARY"}
_NAMES = {PLAIN: "PLAIN", RLE: "RLE", BYTE_STREAM_SPLIT: "BYTE_STREAM_SPLIT", **_DICTIONARIES}
_DATA, _DICTIONARY = 0, 2
# A header has a struct in a struct (the statistics of its values).
_MOST_NESTED = 3
_MOST_BITS = 64


class Page(NamedTuple):
    """A data page: the number of its values (missing ones and empty lists count), their encoding, and its bytes.

    Attributes:
        values: number of values.
        encoding: the encoding of the values, as a number of Parquet's table.
        size: bytes of the body before it was compressed.
        body: bytes of the body as stored.
    """

    values: int
    encoding: int
    size: int
    body: NDArray[np.uint8]


def bytes_at(file: RawIOBase, start: int, size: int) -> NDArray[np.uint8]:
    """Return bytes of a file, fewer at its end.

    They are a copy. A memory map would show whatever happens to the file after its check, and if the file is cut, the
    process ends by a signal; nothing but a copy guards against both. (It takes less than 1% of a student's step; of
    reading alone 5% for int8 vectors, and for other columns nothing that can be measured.)
    """
    try:
        descriptor = file.fileno()
    except UnsupportedOperation:  # a file that is not on this machine
        file.seek(start)
        return np.frombuffer(file.read(size) or b"", np.uint8)
    return np.frombuffer(os.pread(descriptor, size, start), np.uint8)


def place_of(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Return (offset in the file, bytes) of the pages of a column of a row group."""
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return start, chunk.total_compressed_size


def data_pages(chunk: pq.ColumnChunkMetaData, content: NDArray[np.uint8]) -> list[Page]:
    """Return the data pages of a column of a row group from its bytes (those of `place_of`).

    Raises:
        ValueError: if a page's bytes have changed, or its header does not agree with the footer.
    """
    try:
        return _checked(chunk, content)
    except (LookupError, TypeError, OverflowError):
        raise ValueError("a page begins with bytes that are no header of a page with a checksum") from None


def _checked(chunk: pq.ColumnChunkMetaData, content: NDArray[np.uint8]) -> list[Page]:
    data, at = content.data, 0
    pages: list[Page] = []
    unpacked, count, names = 0, 0, chunk.encodings
    may_be_dictionary = chunk.has_dictionary_page
    while at < len(data):
        begin = at
        head, at = _struct(data, at)
        # Fields 1: type; 2 and 3: bytes before and after compression; 4: checksum; 5 or 7: the header of a data page or
        # of a dictionary, with fields 1 and 2: number of values and encoding; of a data page 3 and 4: encodings of the
        # levels.
        size, stored = head[2], head[3]
        body = content[at : at + stored]
        unpacked += at - begin + size
        at += stored
        if stored < 0 or len(body) != stored or crc32(body) != head[4] & 0xFFFFFFFF:
            raise ValueError("CRC checksum verification failed: a page has changed since it was written")
        inner = head[7 if may_be_dictionary else 5]
        values, encoding = inner[1], inner[2]
        if may_be_dictionary:
            as_expected = head[1] == _DICTIONARY and encoding in (PLAIN, 2)
        else:
            as_expected = head[1] == _DATA and inner[3] == inner[4] == RLE != encoding and _NAMES.get(encoding) in names
            if chunk.has_dictionary_page and not pages:
                as_expected &= encoding in _DICTIONARIES
            pages.append(Page(values, encoding, size, body))
            count += values
        if not as_expected or values < 0:
            raise ValueError("the header of a page has changed since it was written")
        may_be_dictionary = False
    if unpacked != chunk.total_uncompressed_size or count != chunk.num_values:
        raise ValueError("the headers of its pages do not agree with the file's footer")
    return pages


def _struct(data: memoryview, at: int, nested: int = 0) -> tuple[dict[int, Any], int]:
    """Return (integers and structs by field number, index after the struct) of a struct in Thrift's compact protocol.
    Fields of other kinds have the value None."""
    if nested > _MOST_NESTED:
        raise ValueError("a page's header has too many structs in structs")
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head < 16:
            raise ValueError("a page's header has fields out of order")
        number += head >> 4
        if kind in (1, 2):
            fields[number] = None
        elif kind in (5, 6):
            value = data[at]
            value, at = (value, at + 1) if value < 128 else varint(data, at)
            fields[number] = value >> 1 ^ -(value & 1)
        elif kind == 8:
            length, at = varint(data, at)
            fields[number], at = None, at + length
        elif kind == 12:
            fields[number], at = _struct(data, at, nested + 1)
        else:
            raise ValueError(f"a page's header has a field of unknown kind {kind}")
    return fields, at + 1


def varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    """Return (value, index after it) of an integer of variable length."""
    value, shift = data[at], 7
    while value >> shift:
        if shift > _MOST_BITS:
            raise ValueError("an integer in a header or in levels has too many bytes")
        at += 1
        value += data[at] - 1 << shift
        shift += 7
    return value, at + 1
