"""Files of text as a stream of rows, in a fixed order, with every bad value named by file and line.

A corpus is never held in memory: it is read through once before the teacher loads (`Corpus.survey`: counts,
fingerprint, a sample, and every error), then again block by block (`Corpus.blocks`), where blocks that are already
done are skipped. Paths, globs, remote URLs and compression are fsspec's business.
"""

import csv
import glob
import hashlib
import io
import json
import math
import random
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import PurePath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from shared.errors import CorpusError

COMPRESSIONS = (".gz", ".zst")
csv.field_size_limit(2**31 - 1)

Label = str | int | None


@dataclass(frozen=True)
class Columns:
    """Which columns of the files hold what.

    `words` says that `text` holds a list of words (and `label` a list of tags, one a word) in place of one string.
    An optional label column may be absent from every file (then nothing is labelled); a required one may not.
    """

    text: str
    pair: str | None = None
    label: str | None = None
    label_required: bool = False
    words: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a corpus: its text (or words), the second text of a pair, its gold label (or one tag a word)."""

    text: str | list[str]
    pair: str | None = None
    label: Label | list[Label] = None


@dataclass(frozen=True)
class Survey:
    """What one pass over a corpus found out.

    `fingerprint` covers the values of the columns that are read, in order, and not the files' names or formats.
    """

    rows: int
    characters: int
    fingerprint: str
    labelled_rows: int
    label_values: frozenset[str | int]
    sample: tuple[Example, ...]


class Corpus:
    """Rows of one or more files, in the order given (the files of a glob in sorted order).

    Example:
        >>> corpus = Corpus(["reviews.jsonl"], Columns(text="text", label="label"))  # doctest: +SKIP
        >>> corpus.survey().rows  # doctest: +SKIP
        1000

    Raises:
        CorpusError: when a path matches nothing, or a file's format is not one that is read.
    """

    def __init__(self, paths: Sequence[str], columns: Columns, limit: int | None = None) -> None:
        self.columns = columns
        self.limit = limit
        self.files = [file for path in paths for file in _expand(path)]
        for file in self.files:
            _reader_of(file)

    def examples(self) -> Iterator[Example]:
        """Every row from the first. Raises CorpusError at the first bad value, naming its file and line."""
        for _, example in islice(self._located(), self.limit):
            yield example()

    def blocks(self, block_rows: int, wanted: Container[int]) -> Iterator[tuple[int, int, list[Example]]]:
        """(index, first row, rows) of each wanted block of `block_rows` rows; the others are passed over unparsed."""
        rows = islice(self._located(), self.limit)
        index = 0
        while block := list(islice(rows, block_rows)):
            if index in wanted:
                yield index, index * block_rows, [example() for _, example in block]
            index += 1

    def survey(self, check: Callable[[Example], None] | None = None, sample_rows: int = 256, seed: int = 0) -> Survey:
        """Read everything once. `check` may raise a CorpusError about a row, to which file and line are added."""
        digest = hashlib.blake2b(digest_size=16)
        chooser = random.Random(seed)
        rows = characters = labelled_rows = 0
        label_values: set[str | int] = set()
        sample: list[Example] = []
        for where, make in islice(self._located(), self.limit):
            example = make()
            if check is not None:
                try:
                    check(example)
                except CorpusError as error:
                    raise CorpusError(f"{where}: {error}") from None
            digest.update(json.dumps((example.text, example.pair, example.label), ensure_ascii=False).encode())
            characters += _length(example.text) + _length(example.pair or "")
            labels = example.label if isinstance(example.label, list) else [example.label]
            known = {label for label in labels if label is not None}
            label_values |= known
            labelled_rows += bool(known)
            # Reservoir sampling (Vitter's algorithm R): every row is as likely to be in the sample.
            if rows < sample_rows:
                sample.append(example)
            elif (slot := chooser.randrange(rows + 1)) < sample_rows:
                sample[slot] = example
            rows += 1
        if rows == 0:
            raise CorpusError(f"{', '.join(self.files)}: no rows of text in there; give a file that holds some.")
        return Survey(rows, characters, digest.hexdigest(), labelled_rows, frozenset(label_values), tuple(sample))

    def _located(self) -> Iterator[tuple[str, Callable[[], Example]]]:
        """(where, a function that makes the row) so that rows which are passed over cost no parsing."""
        label_seen = False
        for file in self.files:
            rows = _reader_of(file)(file, self.columns)
            for number, (where, raw) in enumerate(rows):
                if number == 0:
                    label_seen |= self._check_columns(file, raw)
                yield where, _Maker(self.columns, where, raw)
        if self.columns.label_required and not label_seen:
            raise CorpusError(
                f"no column {self.columns.label!r} in {', '.join(self.files)}; name the column that holds gold labels."
            )

    def _check_columns(self, file: str, raw: "_Raw") -> bool:
        row = raw() if callable(raw) else raw
        for column in (self.columns.text, self.columns.pair):
            if column is not None and column not in row:
                raise CorpusError(
                    f"{file}: no column {column!r}; it has {', '.join(map(repr, row))}. Name the right one "
                    "(--text-column, --pair-column, --tokens-column, or the recipe's keys of these names)."
                )
        return self.columns.label in row


_Row = dict[str, Any]
_Raw = _Row | Callable[[], _Row]
_Located = Iterator[tuple[str, _Raw]]


@dataclass(frozen=True, slots=True)
class _Maker:
    columns: Columns
    where: str
    raw: _Raw

    def __call__(self) -> Example:
        row = self.raw() if callable(self.raw) else self.raw
        columns, where = self.columns, self.where
        text = _words(row, columns.text, where) if columns.words else _string(row, columns.text, where)
        pair = None if columns.pair is None else _string(row, columns.pair, where)
        value = None if columns.label is None else row.get(columns.label)
        if not columns.words:
            return Example(text, pair, _label(value, where))
        if value is None:
            return Example(text, pair, None)
        if not isinstance(value, list) or len(value) != len(text):
            raise CorpusError(f"{where}: column {columns.label!r} must hold one tag for each of the {len(text)} words.")
        return Example(text, pair, [_label(tag, where) for tag in value])


def _string(row: _Row, column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise CorpusError(f"{where}: column {column!r} holds {value!r}, which is not text; mend or drop this row.")
    return value


def _words(row: _Row, column: str, where: str) -> list[str]:
    value = row.get(column)
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise CorpusError(f"{where}: column {column!r} must hold a list of words, but holds {str(value)[:80]!r}.")
    return value


def _label(value: Any, where: str) -> Label:
    """Missing labels come as null, as NaN (pandas) or as an empty string (CSV); whole floats are pandas' integers."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    if isinstance(value, (str, int)):
        return value
    raise CorpusError(f"{where}: {value!r} is no label; labels are names or numbers.")


def _length(text: str | list[str]) -> int:
    return len(text) if isinstance(text, str) else sum(len(word) + 1 for word in text)


def _expand(path: str) -> list[str]:
    """The files behind a path, glob or URL."""
    if not glob.has_magic(path):
        return [path]
    filesystem, pattern = fsspec.core.url_to_fs(path)
    found = sorted(str(file) for file in filesystem.glob(pattern))
    if not found:
        raise CorpusError(f"{path}: no file matches this pattern; check the path.")
    return [filesystem.unstrip_protocol(file) for file in found] if "://" in path else found


def _open(file: str) -> io.BufferedReader:
    try:
        opened: Any = fsspec.open(file, "rb", compression="infer").open()
    except FileNotFoundError:
        raise CorpusError(f"{file}: there is no such file; check the path.") from None
    except IsADirectoryError:
        raise CorpusError(f"{file}: this is a folder; name its files, for instance {file}/*.jsonl.") from None
    return io.BufferedReader(opened)


def _lines(file: str) -> Iterator[tuple[int, str]]:
    """Numbered lines; decoded one by one so that invalid UTF-8 is named by its line."""
    with _open(file) as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{file}, line {number}: byte {raw[error.start]:#04x} is not valid UTF-8; convert the file first "
                    "(for instance with iconv)."
                ) from None
            yield number, line


def _read_txt(file: str, columns: Columns) -> _Located:
    """One row a line; blank lines are no rows."""
    for number, line in _lines(file):
        if text := line.rstrip("\r\n"):
            yield f"{file}, line {number}", {columns.text: text.split() if columns.words else text}


def _read_json(file: str, columns: Columns) -> _Located:
    """One object a line, or one array of objects."""
    lines = _lines(file)
    for number, line in lines:
        if not line.strip():
            continue
        if line.lstrip().startswith("["):
            rows = _parse_json(line + "".join(rest for _, rest in lines), f"{file}, line {number}", list)
            for index, row in enumerate(rows):
                if not isinstance(row, dict):
                    raise CorpusError(f"{file}, item {index}: expected an object, found {str(row)[:80]!r}.")
                yield f"{file}, item {index}", row
            return
        where = f"{file}, line {number}"
        yield where, partial(_parse_json, line, where, dict)


def _parse_json(text: str, where: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where}: not valid JSON ({error.msg}).") from None
    if not isinstance(value, kind):
        raise CorpusError(f"{where}: expected a JSON object a line, found {text.strip()[:80]!r}.")
    return value


def _read_csv(file: str, columns: Columns) -> _Located:
    return _read_delimited(file, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def _read_tsv(file: str, columns: Columns) -> _Located:
    """Quotes are ordinary characters here, as in GLUE's files, where a stray one would swallow the lines after it."""
    return _read_delimited(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_delimited(file: str, delimiter: str, quoting: Any) -> _Located:
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


def _read_parquet(file: str, columns: Columns) -> _Located:
    with _open(file) as stream:
        compressed = PurePath(file).suffix in COMPRESSIONS
        try:
            parquet = pq.ParquetFile(io.BytesIO(stream.read()) if compressed else stream)
        except pa.ArrowInvalid as error:
            raise CorpusError(f"{file}: not a readable Parquet file ({error}).") from None
        present = parquet.schema_arrow.names
        read = [name for name in (columns.text, columns.pair, columns.label) if name in present]
        number = 0
        for batch in parquet.iter_batches(batch_size=1024, columns=read):
            # The names of all columns stay visible to the check for missing ones.
            for row in batch.to_pylist():
                yield f"{file}, row {number}", dict.fromkeys(present) | row if number == 0 else row
                number += 1


_READERS: dict[str, Callable[[str, Columns], _Located]] = {
    ".txt": _read_txt,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}


def _reader_of(file: str) -> Callable[[str, Columns], _Located]:
    path = PurePath(file)
    suffix = PurePath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    if suffix not in _READERS:
        raise CorpusError(
            f"{file}: unknown kind of file; Lectern reads {', '.join(_READERS)}, each also with .gz or .zst behind it."
        )
    return _READERS[suffix]
