"""Files of text as a stream of rows, in a fixed order, with every bad value named by file and line.

A corpus is never held in memory: it is read through once before the teacher loads (`Corpus.survey`: counts,
fingerprint, a sample, and every error), then again block by block (`Corpus.blocks`), where blocks that are already
done are passed over.
"""

import glob
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec

from shared.errors import CorpusError
from shared.text.formats import Columns, RawRow, Row, reader_of

# One message of a chat: role, content, and whatever else the template reads (name, tool_calls, ...).
Message = dict[str, Any]
# A name or a number as text, so that 1 in JSON and 1 in CSV are the same label; None where it is missing.
Label = str | None


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a corpus: its text (or words, or messages), the second text of a pair, its gold label (or one tag a
    word), and the group that it is scored with; no model sees the group."""

    text: str | list[str] | list[Message]
    pair: str | None = None
    label: Label | list[Label] = None
    group: str | None = None


@dataclass(frozen=True)
class Survey:
    """What one pass over a corpus found out.

    `fingerprint` covers the values of the columns that are read, in order, and not the files' names or formats.
    `sample` are rows drawn at random, `sample_numbers` where in the corpus they are.
    """

    rows: int
    fingerprint: str
    labelled_rows: int
    label_values: frozenset[str]
    sample: tuple[Example, ...]
    sample_numbers: tuple[int, ...]


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
            reader_of(file)

    def examples(self) -> Iterator[Example]:
        """Every row from the first. Raises CorpusError at the first bad value, naming its file and line."""
        for make in islice(self._makers(), self.limit):
            yield make.example(make.row())

    def blocks(self, block_rows: int) -> Iterator[tuple[int, int, Callable[[], list[Example]]]]:
        """(index, first row, what parses them) of each block of `block_rows` rows: to pass one over costs little."""
        rows = islice(self._makers(), self.limit)
        index = 0
        while block := list(islice(rows, block_rows)):
            yield index, index * block_rows, partial(_parsed, block)
            index += 1

    def survey(self, check: Callable[[Example], None] | None = None, sample_rows: int = 256, seed: int = 0) -> Survey:
        """Read everything once, and find every error but those of tokenization.

        `check` may raise a CorpusError about a row, to which file and line are added.
        """
        digest = hashlib.blake2b(digest_size=16)
        chooser = random.Random(seed)
        rows = labelled_rows = 0
        label_values: set[str] = set()
        label_seen = False
        sample: list[tuple[int, Example]] = []
        for make in islice(self._makers(), self.limit):
            row = make.row()
            label_seen = label_seen or self.columns.label in row
            example = make.example(row)
            if check is not None:
                try:
                    check(example)
                except CorpusError as error:
                    raise CorpusError(f"{make.where}: {error}") from None
            try:
                content = json.dumps((example.text, example.pair, example.label), ensure_ascii=False)
                digest.update(content.encode())
            except TypeError as error:
                raise CorpusError(f"{make.where}: a message holds what JSON cannot ({error}); mend this row.") from None
            except UnicodeEncodeError as error:
                lone = content[error.start]
                raise CorpusError(f"{make.where}: {lone!r} is half a character; mend or drop this row.") from None
            labels = example.label if isinstance(example.label, list) else [example.label]
            known = {label for label in labels if label is not None}
            label_values |= known
            labelled_rows += bool(known)
            # Reservoir sampling (Vitter's algorithm R): every row is as likely to be in the sample.
            if rows < sample_rows:
                sample.append((rows, example))
            elif (slot := chooser.randrange(rows + 1)) < sample_rows:
                sample[slot] = (rows, example)
            rows += 1
        if rows == 0:
            raise CorpusError(f"{', '.join(self.files)}: no rows of text in there; give a file that holds some.")
        if self.columns.label_required and not label_seen:
            raise CorpusError(
                f"no column {self.columns.label!r} in {', '.join(self.files)}; name the column that holds gold labels."
            )
        sample.sort(key=lambda numbered: numbered[0])
        numbers, examples = zip(*sample, strict=True)
        return Survey(rows, digest.hexdigest(), labelled_rows, frozenset(label_values), examples, numbers)

    def _makers(self) -> Iterator["_Maker"]:
        """Each row still unparsed, so that one which is passed over costs little."""
        for file in self.files:
            for number, (where, raw) in enumerate(reader_of(file)(file, self.columns)):
                make = _Maker(self.columns, where, raw)
                if number == 0:
                    self._check_columns(file, make.row())
                yield make

    def _check_columns(self, file: str, row: Row) -> None:
        for column in (self.columns.text, self.columns.pair, self.columns.group):
            if column is not None and column not in row:
                raise CorpusError(
                    f"{file}: no column {column!r}; it has {', '.join(map(repr, row))}. Name the right one "
                    "(--text-column, --pair-column, --tokens-column, --messages-column, --group-column, or the "
                    "recipe's keys of these names)."
                )


def _parsed(block: list["_Maker"]) -> list[Example]:
    return [make.example(make.row()) for make in block]


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes an example of a row in two steps: parse it, then check what the columns hold."""

    columns: Columns
    where: str
    raw: RawRow

    def row(self) -> Row:
        return self.raw() if callable(self.raw) else self.raw

    def example(self, row: Row) -> Example:
        columns, where = self.columns, self.where
        read = _words if columns.words else _messages if columns.chats else _string
        text: Any = read(row, columns.text, where)
        pair = None if columns.pair is None else _string(row, columns.pair, where)
        value = None if columns.label is None else row.get(columns.label)
        group = None if columns.group is None else _group(row, columns.group, where)
        if not columns.words:
            return Example(text, pair, _label(value, where), group)
        if value is None:
            return Example(text, pair, None, group)
        if not isinstance(value, list) or len(value) != len(text):
            raise CorpusError(f"{where}: column {columns.label!r} must hold one tag for each of the {len(text)} words.")
        return Example(text, pair, [_label(tag, where) for tag in value], group)


def _string(row: Row, column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise CorpusError(f"{where}: column {column!r} holds {value!r}, which is not text; mend or drop this row.")
    return value


def _group(row: Row, column: str, where: str) -> str:
    group = _label(row.get(column), where)
    if group is None:
        raise CorpusError(f"{where}: column {column!r} is empty; every row that is scored by group must name its own.")
    return group


def _words(row: Row, column: str, where: str) -> list[str]:
    value = row.get(column)
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise CorpusError(f"{where}: column {column!r} must hold a list of words, but holds {str(value)[:80]!r}.")
    return value


def _messages(row: Row, column: str, where: str) -> list[Message]:
    """Keys without a value go, as transformers has it: Parquet gives every message the keys of all."""
    chat = row.get(column)
    if not isinstance(chat, list) or not all(isinstance(message, dict) for message in chat):
        raise CorpusError(
            f"{where}: column {column!r} must hold a chat, a list such as [{{'role': 'user', 'content': 'Hello'}}] "
            f"(in .jsonl, .json or .parquet), but holds {str(chat)[:80]!r}."
        )
    if not chat:
        raise CorpusError(f"{where}: column {column!r} holds a chat without messages; drop this row.")
    messages = [{key: value for key, value in message.items() if value is not None} for message in chat]
    for number, message in enumerate(messages):
        said = isinstance(message.get("content"), (str, list)) or ("content" not in message and "tool_calls" in message)
        if not isinstance(message.get("role"), str) or not said:
            raise CorpusError(
                f"{where}: message {number} of column {column!r} must have a 'role' and a 'content' that are text (the "
                f"content may be missing beside 'tool_calls'), but is {str(message)[:80]!r}."
            )
    return messages


def _label(value: Any, where: str) -> Label:
    """Missing labels come as null, as NaN (pandas) or as an empty string (CSV); whole floats are pandas' integers."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (bool, int)) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if isinstance(value, str):
        return value
    raise CorpusError(f"{where}: {value!r} is no label; labels are names or numbers.")


def _expand(path: str) -> list[str]:
    """The files behind a path, glob or URL."""
    if not glob.has_magic(path) or Path(path).exists():
        return [path]
    filesystem, pattern = fsspec.core.url_to_fs(path)
    found = sorted(str(file) for file in filesystem.glob(pattern))
    if not found:
        raise CorpusError(f"{path}: no file matches this pattern; check the path.")
    return [filesystem.unstrip_protocol(file) for file in found] if "://" in path else found
