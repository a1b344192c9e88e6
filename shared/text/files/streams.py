"""Open a file, decompress it and read its lines; and what a reader of a format gives.

fsspec opens remote URLs, and pyarrow decompresses, because it reports a truncated file (the stream of zstandard ends
there without an error).
"""

import io
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any

import fsspec
import pyarrow as pa

from shared.errors import CorpusError
from shared.text.examples import Row

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

# A row, or a function that parses it.
RawRow = Row | Callable[[], Row]
# Rows, each with its place (file and line) for messages.
LocatedRows = Iterator[tuple[str, RawRow]]


def open_file(file: str) -> io.BufferedReader:
    """Open a file, or what its URL names, decompressed. Raises CorpusError if there is none."""
    try:
        opened: Any = fsspec.open(file, "rb").open()
    except FileNotFoundError:
        raise CorpusError(f"{file}: there is no such file; check the path.") from None
    except IsADirectoryError:
        raise CorpusError(f"{file}: this is a folder; name its files, for instance {file}/*.jsonl.") from None
    if compression := COMPRESSIONS.get(PurePath(file).suffix):
        opened = pa.CompressedInputStream(pa.PythonFile(opened, mode="r"), compression)
    return io.BufferedReader(opened)


def unreadable(file: str, error: Exception) -> CorpusError:
    """Return what to raise for a file that breaks off."""
    reason = str(error).strip().split("\n")[0].rstrip(".")
    return CorpusError(f"{file}: cannot be read to its end ({reason}); the file is damaged or truncated.")


def lines_of(file: str) -> Iterator[tuple[int, str]]:
    """Yield numbered lines, decoded one by one so that messages name the line of invalid UTF-8."""
    with open_file(file) as stream:
        numbered = enumerate(stream, start=1)
        while True:
            try:
                number, raw = next(numbered)
            except StopIteration:
                return
            except OSError as error:
                raise unreadable(file, error) from None
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{file}, line {number}: byte {raw[error.start]:#04x} is not valid UTF-8; convert the file first "
                    "(for instance with iconv)."
                ) from None
            yield number, line
