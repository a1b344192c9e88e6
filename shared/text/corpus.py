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
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from shared.errors import CorpusError
from shared.text.formats import Columns, RawRow, Row, reader_of

# One message of a chat: role, content, and whatever else the template reads (name, tool_calls, ...).
Message = dict[str, Any]
# A name or a number as text, so that 1 in JSON and 1 in CSV are the same label; None where it is missing.
Label = str | None


class Answers(NamedTuple):
    """The gold answers to a question, and at which character of its context each begins; none where it has none."""

    texts: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a corpus: its text (or words, or messages), the second text of a pair, its gold label (or one tag a
    word, or the answers to a question). Where an example of the files becomes several rows, `window` says which of them
    this is, and `number` which example it is of."""

    text: str | list[str] | list[Message]
    pair: str | None = None
    label: Label | list[Label] | Answers = None
    window: int = 0
    number: int | None = None


@dataclass(frozen=True)
class Survey:
    """What one pass over a corpus found out.

    `fingerprint` covers the values of the columns that are read, in order, and not the files' names or formats.
    `sample` are rows drawn at random, `sample_numbers` where in the corpus they are. `examples` counts the rows of the
    files, of which each may be several `rows`.
    """

    rows: int
    fingerprint: str
    labelled_rows: int
    label_values: frozenset[str]
    sample: tuple[Example, ...]
    sample_numbers: tuple[int, ...]
    examples: int = 0


class Corpus:
    """Rows of one or more files, in the order given (the files of a glob in sorted order).

    `limit` is how many rows of the files count, from the first. `windows` says how many rows of the corpus an example
    becomes, where that is not one; the survey keeps the answers, so that a block is passed over without asking again.

    Example:
        >>> corpus = Corpus(["reviews.jsonl"], Columns(text="text", label="label"))  # doctest: +SKIP
        >>> corpus.survey().rows  # doctest: +SKIP
        1000

    Raises:
        CorpusError: when a path matches nothing, or a file's format is not one that is read.
    """

    def __init__(
        self,
        paths: Sequence[str],
        columns: Columns,
        limit: int | None = None,
        windows: Callable[[Example], int] | None = None,
    ) -> None:
        self.columns = columns
        self.limit = limit
        self._windows, self._counts = windows, array("I")
        self.files = [file for path in paths for file in _expand(path)]
        for file in self.files:
            reader_of(file)

    def examples(self) -> Iterator[Example]:
        """Every row from the first. Raises CorpusError at the first bad value, naming its file and line."""
        for make in islice(self._makers(), self.limit):
            yield make.example(make.row())

    def blocks(self, block_rows: int) -> Iterator[tuple[int, int, Callable[[], list[Example]]]]:
        """(index, first row, what parses them) of each block of `block_rows` rows: to pass one over costs little."""
        rows = self._rows()
        index = 0
        while block := list(islice(rows, block_rows)):
            yield index, index * block_rows, partial(_parsed, block)
            index += 1

    def _rows(self) -> Iterator["_Row"]:
        makers = islice(self._makers(), self.limit)
        if self._windows is None:
            yield from ((make, None, 0) for make in makers)
            return
        if not self._counts:
            self.survey()
        # A file that has grown since then is noticed by who counts the rows.
        for number, (make, count) in enumerate(zip(makers, chain(self._counts, repeat(1)), strict=False)):
            yield from ((make, number, window) for window in range(count))

    def survey(self, check: Callable[[Example], None] | None = None, sample_rows: int = 256, seed: int = 0) -> Survey:
        """Read everything once, and find every error but those of tokenization.

        `check` may raise a CorpusError about a row, to which file and line are added.
        """
        digest = hashlib.blake2b(digest_size=16)
        chooser = random.Random(seed)
        rows = examples = labelled_rows = 0
        label_values: set[str] = set()
        label_seen = False
        counts = array("I")
        sample: list[tuple[int, Example]] = []
        for make in islice(self._makers(), self.limit):
            row = make.row()
            label_seen = label_seen or self.columns.label in row
            example = make.example(row)
            try:
                if check is not None:
                    check(example)
                windows = 1 if self._windows is None else self._windows(example)
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
            label_values |= {label for label in known if isinstance(label, str)}
            labelled_rows += windows if known else 0
            for window in range(windows):
                one = example if self._windows is None else replace(example, window=window, number=examples)
                # Reservoir sampling (Vitter's algorithm R): every row is as likely to be in the sample.
                if rows < sample_rows:
                    sample.append((rows, one))
                elif (slot := chooser.randrange(rows + 1)) < sample_rows:
                    sample[slot] = (rows, one)
                rows += 1
            examples += 1
            if self._windows is not None:
                counts.append(windows)
        if rows == 0:
            raise CorpusError(f"{', '.join(self.files)}: no rows of text in there; give a file that holds some.")
        if self.columns.label_required and not label_seen:
            raise CorpusError(
                f"no column {self.columns.label!r} in {', '.join(self.files)}; name the column that holds gold labels."
            )
        sample.sort(key=lambda numbered: numbered[0])
        numbers, sampled = zip(*sample, strict=True)
        self._counts = counts
        found = frozenset(label_values)
        return Survey(rows, digest.hexdigest(), labelled_rows, found, sampled, numbers, examples)

    def _makers(self) -> Iterator["_Maker"]:
        """Each row still unparsed, so that one which is passed over costs little."""
        for file in self.files:
            for number, (where, raw) in enumerate(reader_of(file)(file, self.columns)):
                make = _Maker(self.columns, where, raw)
                if number == 0:
                    self._check_columns(file, make.row())
                yield make

    def _check_columns(self, file: str, row: Row) -> None:
        for column in (self.columns.text, self.columns.pair):
            if column is not None and column not in row:
                raise CorpusError(
                    f"{file}: no column {column!r}; it has {', '.join(map(repr, row))}. Name the right one "
                    "(--text-column, --pair-column, --tokens-column, --messages-column, --question-column, "
                    "--context-column, or the recipe's keys of these names)."
                )


def _parsed(block: list["_Row"]) -> list[Example]:
    examples, last = [], None
    for make, number, window in block:
        if make is not last:
            example, last = make.example(make.row()), make
        examples.append(example if number is None else replace(example, window=window, number=number))
    return examples


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
        if columns.starts is not None:
            return Example(text, pair, _answers(row, columns, where))
        value = None if columns.label is None else row.get(columns.label)
        if not columns.words:
            return Example(text, pair, _label(value, where))
        if value is None:
            return Example(text, pair, None)
        if not isinstance(value, list) or len(value) != len(text):
            raise CorpusError(f"{where}: column {columns.label!r} must hold one tag for each of the {len(text)} words.")
        return Example(text, pair, [_label(tag, where) for tag in value])


# What makes an example, and, where it becomes several rows, its number in the files and which of them this is.
_Row = tuple[_Maker, int | None, int]


def _string(row: Row, column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise CorpusError(f"{where}: column {column!r} holds {value!r}, which is not text; mend or drop this row.")
    return value


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


def _answers(row: Row, columns: Columns, where: str) -> Answers | None:
    """None where nobody has looked for an answer; no answers where there is none to be found."""
    if columns.impossible is not None and row.get(columns.impossible):
        return Answers()
    texts = None if columns.label is None else row.get(columns.label)
    starts = row.get(str(columns.starts))
    if texts is None:
        return None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise CorpusError(f"{where}: column {columns.label!r} must hold a list of answers, not {str(texts)[:80]!r}.")
    if not isinstance(starts, list) or not all(isinstance(start, int) for start in starts):
        raise CorpusError(
            f"{where}: column {columns.starts!r} must hold a list of whole numbers (the characters of the context at "
            f"which the answers begin), not {str(starts)[:80]!r}."
        )
    if len(starts) != len(texts):
        raise CorpusError(f"{where}: there are {len(texts)} answers in {columns.label!r} and {len(starts)} starts.")
    return Answers(tuple(texts), tuple(starts))


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
