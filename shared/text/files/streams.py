"""Open a file, decompress it and read its lines; and what a reader of a format gives.

fsspec opens remote URLs, and pyarrow decompresses, because it reports a truncated file (the stream of zstandard ends
there without an error).
"""

import io
import os
import stat
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import PurePath
from typing import Any

import pyarrow as pa

from shared.errors import CorpusError
from shared.parsing import NotParsed, decode
from shared.progress import human_bytes
from shared.storage.urls import Guarded, filesystem_of, is_local
from shared.text.examples import Row

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# A small compressed file may hold a line that fills the memory.
LONGEST_LINE = 64_000_000
LARGEST_DOCUMENT = 256_000_000

# A row, or a function that parses it.
RawRow = Row | Callable[[], Row]
# Rows, each with its place (file and line) for messages.
LocatedRows = Iterator[tuple[str, RawRow]]
# Lines, each with its number, counted from 1.
Lines = Iterator[tuple[int, str]]


def open_file(file: str) -> io.BufferedReader:
    """Open a file, or what its URL names, decompressed. Raises CorpusError if there is none that can be read."""
    try:
        filesystem, path = filesystem_of(file)
        if is_local(filesystem):
            _check_regular(file, path)
        opened: Any = Guarded(filesystem, file).open(path, "rb")
    except FileNotFoundError:
        raise CorpusError(f"{file}: there is no such file; check the path.") from None
    except IsADirectoryError:
        raise CorpusError(f"{file}: this is a folder; name its files, for instance {file}/*.jsonl.") from None
    except (OSError, ValueError) as error:  # a ValueError for names that no file can have
        raise CorpusError(f"{file}: cannot be opened ({reason_of(error)}); check the path.") from None
    if compression := COMPRESSIONS.get(PurePath(file).suffix):
        opened = pa.CompressedInputStream(pa.PythonFile(opened, mode="r"), compression)
    return io.BufferedReader(opened)


def _check_regular(file: str, path: str) -> None:
    """Check that reading a path comes to an end. Raises CorpusError for devices, pipes and sockets."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise CorpusError(
            f"{file}: this is no ordinary file (but a device, a pipe or a socket), and files are read more than once; "
            "write its content into a file first."
        )


def reason_of(error: Exception) -> str:
    """Return the first line of what an error says, without its full stop."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return said.strip().split("\n")[0].rstrip(".")


def unreadable(file: str, error: Exception) -> CorpusError:
    """Return what to raise for a file that breaks off."""
    return CorpusError(f"{file}: cannot be read to its end ({reason_of(error)}); the file is damaged or truncated.")


def too_large(file: str, way_out: str) -> CorpusError:
    """Return what to raise for a file that is read as a whole and too large for that; it ends with the way out."""
    return CorpusError(f"{file}: larger than {human_bytes(LARGEST_DOCUMENT)}, and read as a whole; {way_out}.")


def lines_of(file: str, longest_first: int | None = None) -> Lines:
    """Yield numbered lines, decoded one by one so that messages name the line of invalid UTF-8.

    `longest_first` is the size in bytes that the first line may have, if it may have more than the others.

    Raises:
        CorpusError: also for a line that is too long.
    """
    with open_file(file) as stream:
        for number in count(1):
            longest = longest_first if number == 1 and longest_first else LONGEST_LINE
            if not (raw := _read(file, stream.readline, longest + 1)):
                return
            if len(raw) > longest:
                raise CorpusError(
                    f"{file}, line {number}: longer than {human_bytes(longest)}; cut its text into several rows, or "
                    "drop it."
                )
            try:
                line = decode(raw, number)
            except NotParsed as error:
                raise CorpusError(f"{file}, line {number}: {error.reason}.") from None
            yield number, line


def document_in(stream: io.BufferedReader, file: str, way_out: str) -> bytes:
    """Return a whole file. Raises CorpusError, which ends with the way out, if it is too large."""
    content = _read(file, stream.read, LARGEST_DOCUMENT + 1)
    if len(content) > LARGEST_DOCUMENT:
        raise too_large(file, way_out)
    return content


def _read(file: str, method: Callable[[int], bytes], size: int) -> bytes:
    """Return what a method of a stream gives for a size. Raises CorpusError for a file that breaks off."""
    try:
        return method(size)
    except (OSError, pa.ArrowInvalid) as error:
        raise unreadable(file, error) from None
