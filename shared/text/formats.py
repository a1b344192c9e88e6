"""File formats: read the rows of a file as plain dicts, each with its place (file and line) for messages.

Readers stream, and lines of JSON are parsed only when they are needed. fsspec opens remote URLs, and pyarrow
decompresses, because it reports a truncated file (the stream of zstandard ends there without an error).
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from shared.errors import CorpusError
from shared.text.examples import Columns, Row

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
csv.field_size_limit(2**31 - 1)


# A row, or a function that parses it.
RawRow = Row | Callable[[], Row]
LocatedRows = Iterator[tuple[str, RawRow]]


def reader_of(file: str) -> Callable[[str, Columns], LocatedRows]:
    """The reader for a file, chosen by the file's name. Raises CorpusError for an unknown kind of file."""
    path = PurePath(file)
    suffix = PurePath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    if suffix not in _READERS:
        raise CorpusError(
            f"{file}: unknown kind of file; Lectern reads {', '.join(_READERS)}, each also followed by .gz or .zst."
        )
    return _READERS[suffix]


def _open(file: str) -> io.BufferedReader:
    try:
        opened: Any = fsspec.open(file, "rb").open()
    except FileNotFoundError:
        raise CorpusError(f"{file}: there is no such file; check the path.") from None
    except IsADirectoryError:
        raise CorpusError(f"{file}: this is a folder; name its files, for instance {file}/*.jsonl.") from None
    if compression := COMPRESSIONS.get(PurePath(file).suffix):
        opened = pa.CompressedInputStream(pa.PythonFile(opened, mode="r"), compression)
    return io.BufferedReader(opened)


def _unreadable(file: str, error: Exception) -> CorpusError:
    reason = str(error).strip().split("\n")[0].rstrip(".")
    return CorpusError(f"{file}: cannot be read to its end ({reason}); the file is damaged or truncated.")


def _lines(file: str) -> Iterator[tuple[int, str]]:
    """Yield numbered lines, decoded one by one so that messages name the line of invalid UTF-8."""
    with _open(file) as stream:
        numbered = enumerate(stream, start=1)
        while True:
            try:
                number, raw = next(numbered)
            except StopIteration:
                return
            except OSError as error:
                raise _unreadable(file, error) from None
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{file}, line {number}: byte {raw[error.start]:#04x} is not valid UTF-8; convert the file first "
                    "(for instance with iconv)."
                ) from None
            yield number, line


def _read_txt(file: str, columns: Columns) -> LocatedRows:
    """One row per line; blank lines are skipped."""
    for number, line in _lines(file):
        if text := line.rstrip("\r\n"):
            yield f"{file}, line {number}", {columns.text: columns.shape.of_line(text)}


def _read_json(file: str, columns: Columns) -> LocatedRows:
    """One object per line, or one array of objects."""
    lines = _lines(file)
    for number, line in lines:
        if not line.strip():
            continue
        if line.lstrip().startswith("["):
            rows = _parse_json(line + "".join(rest for _, rest in lines), file, number)
            for index, row in enumerate(rows):
                if not isinstance(row, dict):
                    raise CorpusError(f"{file}, item {index}: expected an object, found {str(row)[:80]!r}.")
                yield f"{file}, item {index}", row
            return
        yield f"{file}, line {number}", partial(_parse_object, line, file, number)


def _parse_object(line: str, file: str, number: int) -> Row:
    value = _parse_json(line.rstrip(), file, number)
    if not isinstance(value, dict):
        raise CorpusError(f"{file}, line {number}: expected one JSON object per line, found {line.strip()[:80]!r}.")
    return value


def _parse_json(text: str, file: str, number: int) -> Any:
    """The parsed JSON text, which begins at line `number` of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{file}, line {number + error.lineno - 1}: not valid JSON ({error.msg}).") from None


def _read_csv(file: str, columns: Columns) -> LocatedRows:
    return _read_delimited(file, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def _read_tsv(file: str, columns: Columns) -> LocatedRows:
    """Quotes are ordinary characters, as in the files of GLUE, where a single one would join all lines after it."""
    return _read_delimited(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_delimited(file: str, delimiter: str, quoting: Any) -> LocatedRows:
    reader = csv.reader((line for _, line in _lines(file)), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        header = next(reader, [])
        for fields in reader:
            where = f"{file}, line {reader.line_num}"
            if not fields:
                continue
            if len(fields) != len(header):
                raise CorpusError(f"{where}: {len(fields)} fields where the header names {len(header)}.")
            yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise CorpusError(f"{file}, line {reader.line_num}: {error}.") from None


def _read_parquet(file: str, columns: Columns) -> LocatedRows:
    with _open(file) as stream:
        try:
            compressed = PurePath(file).suffix in COMPRESSIONS
            parquet = pq.ParquetFile(io.BytesIO(stream.read()) if compressed else stream)
            present = parquet.schema_arrow.names
            read = [name for name in columns.named if name in present]
            number = 0
            for batch in parquet.iter_batches(batch_size=1024, columns=read):
                # The first row has the names of all columns, for the check of missing ones.
                for row in batch.to_pylist():
                    yield f"{file}, row {number}", dict.fromkeys(present) | row if number == 0 else row
                    number += 1
        except (pa.ArrowInvalid, OSError) as error:
            raise _unreadable(file, error) from None


_READERS: dict[str, Callable[[str, Columns], LocatedRows]] = {
    ".txt": _read_txt,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
