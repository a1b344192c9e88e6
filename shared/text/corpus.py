"""Files of text as a stream of rows, in a fixed order, with every bad value named by file and line.

A corpus is never held in memory: it is read through once before the teacher loads (`Corpus.survey`: counts,
fingerprint, a sample, and every error), then again block by block (`Corpus.blocks`), where blocks that are already
done are passed over.
"""

import glob
import hashlib
import json
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path

import fsspec

from shared.errors import CorpusError
from shared.text.examples import Columns, Example, Row, example_of
from shared.text.formats import RawRow, reader_of


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
        >>> corpus = Corpus(["reviews.jsonl"], Columns(text="text", label="label"))
        >>> corpus.survey().rows
        40

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
        for column in (self.columns.text, self.columns.pair, self.columns.group):
            if column is not None and column not in row:
                raise CorpusError(
                    f"{file}: no column {column!r}; it has {', '.join(map(repr, row))}. Name the right one "
                    "(--text-column, --pair-column, --tokens-column, --messages-column, --question-column, "
                    "--context-column, --group-column, or the recipe's keys of these names)."
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
        return example_of(row, self.columns, self.where)


# What makes an example, and, where it becomes several rows, its number in the files and which of them this is.
_Row = tuple[_Maker, int | None, int]


def _expand(path: str) -> list[str]:
    """The files behind a path, glob or URL."""
    if not glob.has_magic(path) or Path(path).exists():
        return [path]
    filesystem, pattern = fsspec.core.url_to_fs(path)
    found = sorted(str(file) for file in filesystem.glob(pattern))
    if not found:
        raise CorpusError(f"{path}: no file matches this pattern; check the path.")
    return [filesystem.unstrip_protocol(file) for file in found] if "://" in path else found
