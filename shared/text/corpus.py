"""Read files of text as a stream of rows in a fixed order; errors name the file and the line of an invalid value.

A corpus is never held in memory. It is read once before the teacher is loaded (`Corpus.survey`: counts, fingerprint,
a sample, and all errors), and then again block by block (`Corpus.blocks`), where finished blocks are skipped. The
survey stores a hash of each block, so that a file which is rewritten in the meantime is detected when a block is read.
"""

import glob
import hashlib
import json
import os
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, repeat

from shared.errors import CorpusError
from shared.storage.urls import Guarded, filesystem_of
from shared.text.examples import Columns, Example, Row, example_of
from shared.text.files import RawRow, names_in_metadata, reader_of
from shared.text.labels import names_from_values


@dataclass(frozen=True)
class Survey:
    """The results of one pass over a corpus.

    Attributes:
        rows: the number of rows.
        fingerprint: a hash of the values of the columns that are read, in order, without the files' names and formats.
        labelled_rows: the number of rows with a gold label.
        label_values: the labels that occur.
        sample, sample_numbers: rows drawn at random, and their numbers in the corpus.
        examples: the number of rows of the files, each of which may become several `rows`.
    """

    rows: int
    fingerprint: str
    labelled_rows: int
    label_values: frozenset[str]
    sample: tuple[Example, ...]
    sample_numbers: tuple[int, ...]
    examples: int = 0


class Corpus:
    """The rows of one or more files, in the given order (the files of a glob in sorted order).

    `limit` is the number of rows of the files to read, from the first. `windows` returns the number of rows of the
    corpus that an example becomes, if that is not one; the survey keeps its results, so that blocks are skipped
    without calling it again.

    Example:
        >>> corpus = Corpus(["reviews.jsonl"], Columns(text="text", label="label"))
        >>> corpus.survey().rows
        40

    Raises:
        CorpusError: if a path matches no file, or a file has an unknown format.
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
        self._blocks = _Hashes(0)
        self.files = [file for path in paths for file in _expand(path)]
        for file in self.files:
            reader_of(file)

    def examples(self) -> Iterator[Example]:
        """Yield every row. Raises CorpusError at the first invalid value, naming its file and line."""
        for make in islice(self._makers(), self.limit):
            yield make.example(make.row())

    def label_names(self) -> tuple[str, ...]:
        """Return the names of the labels: those in the metadata of a file, or those that occur in the rows."""
        given = (names_in_metadata(file, self.columns) for file in self.files)
        return next((names for names in given if names is not None), None) or names_from_values(
            self.survey().label_values
        )

    def blocks(self, block_rows: int) -> Iterator[tuple[int, int, Callable[[], list[Example]]]]:
        """Yield (index, first row, function that parses its rows) for each block of `block_rows` rows.

        Skipping a block is cheap, because its rows are only parsed if the function is called. If the survey had blocks
        of the same size, the function raises CorpusError for rows that have changed since the survey.
        """
        rows = self._rows()
        index = 0
        while block := list(islice(rows, block_rows)):
            yield index, index * block_rows, partial(self._parsed, block, index, block_rows)
            index += 1

    def _parsed(self, block: list["_Row"], index: int, block_rows: int) -> list[Example]:
        examples, last = [], None
        hashes = _Hashes(block_rows) if self._blocks.block_rows == block_rows else None
        for make, number, window in block:
            if make is not last:
                example, last = make.example(make.row()), make
                content = make.content(example) if hashes is not None else b""
            examples.append(example if number is None else replace(example, window=window, number=number))
            if hashes is not None:
                hashes.add(content, is_new=window == 0)
        if hashes is not None and hashes.of(0) != self._blocks.of(index):
            first = index * block_rows
            raise CorpusError(
                f"{', '.join(self.files)}: the corpus has changed since this run began; rows {first:,} to "
                f"{first + len(block) - 1:,} are different now. Restore it and run the same command again; finished "
                "work is kept."
            )
        return examples

    def _rows(self) -> Iterator["_Row"]:
        makers = islice(self._makers(), self.limit)
        if self._windows is None:
            yield from ((make, None, 0) for make in makers)
            return
        if not self._counts:
            self.survey()
        # If a file has grown since the survey, the caller notices it by the number of rows.
        for number, (make, count) in enumerate(zip(makers, chain(self._counts, repeat(1)), strict=False)):
            yield from ((make, number, window) for window in range(count))

    def survey(
        self,
        check: Callable[[Example], None] | None = None,
        sample_rows: int = 256,
        seed: int = 0,
        block_rows: int = 0,
    ) -> Survey:
        """Read everything once, and find all errors except those of tokenization.

        `check` may raise a CorpusError about a row; file and line are added to its message. `block_rows` is the size of
        the blocks whose rows `blocks` compares with those of the survey; with 0, it compares none.
        """
        digest = hashlib.blake2b(digest_size=16)
        chooser = random.Random(seed)
        rows = examples = labelled_rows = 0
        label_values: set[str] = set()
        label_seen = False
        counts, blocks = array("I"), _Hashes(block_rows)
        sample: list[tuple[int, Example]] = []
        for make in islice(self._makers(), self.limit):
            row = make.row()
            label_seen = label_seen or self.columns.as_named_in(row).label in row
            example = make.example(row)
            try:
                if check is not None:
                    check(example)
                windows = 1 if self._windows is None else self._windows(example)
            except CorpusError as error:
                raise CorpusError(f"{make.where}: {error}") from None
            content = make.content(example)
            digest.update(content)
            labels = example.label if isinstance(example.label, list) else [example.label]
            known = {label for label in labels if label is not None}
            label_values |= {label for label in known if isinstance(label, str)}
            labelled_rows += windows if known else 0
            for window in range(windows):
                one = example if self._windows is None else replace(example, window=window, number=examples)
                # Reservoir sampling (Vitter's algorithm R): every row has the same chance to be in the sample.
                if rows < sample_rows:
                    sample.append((rows, one))
                elif (slot := chooser.randrange(rows + 1)) < sample_rows:
                    sample[slot] = (rows, one)
                rows += 1
                blocks.add(content, is_new=window == 0)
            examples += 1
            if self._windows is not None:
                counts.append(windows)
        if rows == 0:
            raise CorpusError(f"{', '.join(self.files)}: no rows of text; give a file that has some.")
        if self.columns.label_required and not label_seen:
            raise CorpusError(
                f"no column {self.columns.label!r} in {', '.join(self.files)}; name the column that holds gold labels."
            )
        sample.sort(key=lambda numbered: numbered[0])
        numbers, sampled = zip(*sample, strict=True)
        self._counts, self._blocks = counts, blocks
        found = frozenset(label_values)
        return Survey(rows, digest.hexdigest(), labelled_rows, found, sampled, numbers, examples)

    def _makers(self) -> Iterator["_Maker"]:
        """Yield each row unparsed, so that skipping a row is cheap."""
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


class _Hashes:
    """A hash of each block of `block_rows` rows. An example with several rows is added once to each of their blocks."""

    def __init__(self, block_rows: int) -> None:
        self.block_rows, self._rows = block_rows, 0
        self._finished: list[bytes] = []
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, content: bytes, is_new: bool) -> None:
        """Add a row with the content of its example; `is_new` says whether it is the first row of the example."""
        if is_new or self._rows == 0:
            self._hash.update(content)
        self._rows += 1
        if self._rows == self.block_rows:
            self._finished.append(self._hash.digest())
            self._hash, self._rows = hashlib.blake2b(digest_size=16), 0

    def of(self, block: int) -> bytes | None:
        """Return the hash of a block (the last one may have fewer rows); None if there is no such block."""
        if block < len(self._finished):
            return self._finished[block]
        return self._hash.digest() if block == len(self._finished) and self._rows else None


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes an example in two steps: parse the row, then check the values of its columns."""

    columns: Columns
    where: str
    raw: RawRow

    def row(self) -> Row:
        return self.raw() if callable(self.raw) else self.raw

    def example(self, row: Row) -> Example:
        return example_of(row, self.columns, self.where)

    def content(self, example: Example) -> bytes:
        """Return the content of an example that fingerprints cover. Raises CorpusError if it is not valid text."""
        try:
            content = json.dumps((example.text, example.pair, example.label), ensure_ascii=False)
            return content.encode()
        except TypeError as error:
            raise CorpusError(
                f"{self.where}: a message has a value that JSON cannot hold ({error}); correct or drop this row."
            ) from None
        except UnicodeEncodeError as error:
            lone = content[error.start]
            raise CorpusError(
                f"{self.where}: {lone!r} is half of a surrogate pair; correct or drop this row."
            ) from None


# (maker of the example, its number in the files or None, window): the last two if examples become several rows.
_Row = tuple[_Maker, int | None, int]


def _expand(path: str) -> list[str]:
    """The files that a path, glob or URL names."""
    if not glob.has_magic(path) or os.path.exists(path):
        return [path]
    filesystem, pattern = filesystem_of(path)
    try:
        found = sorted(str(file) for file in Guarded(filesystem, path).glob(pattern))
    except OSError as error:
        raise CorpusError(f"{path}: cannot be listed ({error.strerror or error}); check the path.") from None
    if not found:
        raise CorpusError(f"{path}: no file matches this pattern; check the path.")
    return [filesystem.unstrip_protocol(file) for file in found] if "://" in path else found
