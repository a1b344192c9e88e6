"""Sources of training rows: a dump, or files with gold labels. Both give row groups of flat arrays."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shared.dump.codecs import DistributionCodec, Mixtures, VectorCodec
from shared.dump.dump import Dump
from shared.dump.facts import Pooling
from shared.dump.layouts import Layout
from shared.dump.manifest import FILE_NAME
from shared.dump.reader import GroupReader, GroupSizes
from shared.dump.rowgroup import MISSING, RowGroup
from shared.dump.signals import Per, Signal, SignalKey
from shared.errors import RecipeError
from shared.models.loading import load_tokenizer
from shared.storage import Folder, Place
from shared.storage.on_disk import on_disk
from shared.text.corpus import Corpus
from shared.text.examples import Columns, Example
from shared.text.lengths import DEFAULT_STRIDE
from shared.text.predictions import LostWords
from shared.text.rows import row_group
from shared.text.tasks import Task, task_named
from shared.text.tokenized import Tokenizing
from student_train.data.projected import ProjectedSignal, computed_widths, signals_of

TEXT_GROUP_ROWS = 1024


@dataclass
class Source(ABC):
    """Rows to train on or to score.

    Attributes:
        name: its name in messages.
        fingerprint: equal for sources with the same rows and, if they are dumps, the same teacher's signals.
        vocabulary: the number of embeddings of a fresh student.
        group_rows: the number of rows of each row group; `load` reads row groups by number.
        has_gold: whether any row has a gold label.
        layout: where in a row distributions and gold labels are.
        positions: the choice of recorded positions.
        signals: the teacher's signals, stored or computed, by key; empty for files with gold labels.
        pooling: how the teacher's embeddings of rows were made, if there are any.
        attention_heads: the teacher's number of attention heads, if the source knows it.
        has_misplaced_gold: whether an earlier version placed the gold labels beside the tokens that they belong to.
    """

    name: str
    fingerprint: str
    task: Task
    tokenizer: PreTrainedTokenizerBase
    label_names: tuple[str, ...] | None
    vocabulary: int
    max_length: int
    group_rows: tuple[int, ...]
    has_gold: bool
    layout: Layout
    positions: str | None
    signals: dict[SignalKey, Signal | ProjectedSignal] = field(default_factory=dict)
    pooling: Pooling | None = None
    attention_heads: int | None = None
    has_misplaced_gold: bool = False

    @abstractmethod
    def load(self, group: int, columns: Sequence[str]) -> RowGroup:
        """One row group, with these columns of codecs."""

    def partners(self, group: int) -> RowGroup:
        """The rows with which those of a row group may be mixed, without columns of codecs; by default these rows."""
        return self.load(group, [])

    @abstractmethod
    def sizes(self, columns: Sequence[str]) -> GroupSizes:
        """The sizes of all row groups, with these columns of codecs."""

    def word_embeddings(self) -> Tensor | None:
        """The teacher's word embeddings [V, D]; None if the rows have no teacher.

        Raises:
            DumpError: for a dump without word embeddings.
        """
        return None

    def teacher_weights(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(the teacher's configuration, its weights by name), as `Dump.teacher_weights`.

        Raises:
            DumpError: for a dump without the teacher's weights.
            RecipeError: if the rows have no teacher.
        """
        raise self._no_teacher("weights", "--teacher-weights all")

    def importance(self) -> dict[str, Tensor]:
        """The importance of the teacher's heads, neurons and residual dimensions, as `Dump.importance`.

        Raises:
            DumpError: for a dump without it.
            RecipeError: if the rows have no teacher.
        """
        raise self._no_teacher("importance of its heads and neurons", "--importance ROWS")

    def _no_teacher(self, what: str, option: str) -> RecipeError:
        return RecipeError(
            f"{self.name}: the student begins with a teacher's {what}, which a dump can have (dump {option}), but "
            "files with gold labels do not; train on a dump, or choose another way to begin."
        )

    def gold(self, group: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(numbers of a row group's rows [R], whether each has a gold label at any position [R]).

        For windows of a question's context, the numbers are those of their questions.
        """
        loaded = self.load(group, [])
        labelled = np.concatenate([[0], np.cumsum(loaded.labels != MISSING)])
        numbers = loaded.rows if loaded.questions is None else loaded.questions
        return numbers, np.diff(labelled[loaded.position_offsets]) > 0

    def columns_of(self, keys: Collection[SignalKey]) -> list[str]:
        """The names of the columns of the signals with these keys, each once, vectors first."""
        wanted = [signal for key, signal in self.signals.items() if key in keys]
        signals = sorted(wanted, key=lambda signal: signal.is_distribution)
        return list(dict.fromkeys(column.name for signal in signals for column in signal.columns))

    @property
    def per_column(self) -> dict[str, Per]:
        """Column name -> whether the column has an entry per token, position or row, for all columns of signals."""
        return {column.name: signal.per for signal in self.signals.values() for column in signal.columns}

    @property
    def distribution(self) -> DistributionCodec | None:
        """The codec of the teacher's distributions, if there are any."""
        return next((each.codec for each in self.signals.values() if isinstance(each.codec, DistributionCodec)), None)

    @property
    def mixtures(self) -> Mixtures | None:
        """The codec of mixtures of rows, if there are any."""
        return next((each.codec for each in self.signals.values() if isinstance(each.codec, Mixtures)), None)

    @property
    def vectors(self) -> dict[SignalKey, VectorCodec]:
        """The codecs of the teacher's vectors, or of what they are computed from."""
        return {key: each.codec for key, each in self.signals.items() if isinstance(each.codec, VectorCodec)}

    @property
    def widths(self) -> dict[SignalKey, int]:
        """The width of each of the teacher's vectors."""
        return {key: codec.width for key, codec in self.vectors.items()} | computed_widths(self.signals)

    @property
    def has_chains(self) -> bool:
        """Whether a row's distributions are about the tags of its words, one after the other."""
        return self.task.chain_positions is not None and self.positions == self.task.chain_positions

    @property
    def has_dense_logits(self) -> bool:
        """Whether distributions have every logit."""
        return self.distribution is not None and self.distribution.keeps_all_logits


class DumpSource(Source):
    """The rows of a dump. Only the dump's folder is needed."""

    def __init__(self, path: Place) -> None:
        dump = Dump(path)
        dump.require_complete()
        self._dump, manifest = dump, dump.manifest
        self._reader = GroupReader(dump.path, manifest, dump.receipts)
        task, tokenizer = task_named(manifest.task), _tokenizer_of(dump.path / "tokenizer")
        offsets = task.offsets_fact(Tokenizing(tokenizer, manifest.options.max_length))
        super().__init__(
            name=str(dump.path),
            # The manifest tells the teacher's weights, the corpus and every option; what continues a dump keeps it.
            fingerprint=sha256((dump.path / FILE_NAME).read_bytes()).hexdigest(),
            task=task,
            tokenizer=tokenizer,
            label_names=manifest.label_names,
            vocabulary=manifest.vocabulary,
            max_length=manifest.options.max_length,
            group_rows=self._reader.group_rows,
            has_gold=manifest.labelled,
            layout=manifest.layout,
            positions=manifest.options.positions,
            signals=signals_of(dump),
            pooling=manifest.pooling,
            attention_heads=manifest.teacher.attention_heads,
            has_misplaced_gold=manifest.labelled and manifest.tokenizer.offsets != offsets,
        )

    def load(self, group: int, columns: Sequence[str]) -> RowGroup:
        return self._reader.read(group, columns)

    def sizes(self, columns: Sequence[str]) -> GroupSizes:
        return self._reader.sizes(columns)

    def word_embeddings(self) -> Tensor:
        return self._dump.word_embeddings()

    def teacher_weights(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return self._dump.teacher_weights()

    def importance(self) -> dict[str, Tensor]:
        return self._dump.importance()

    def gold(self, group: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        return self._reader.gold(group)


class TextSource(Source):
    """The rows of files, tokenized when it is made and kept as flat arrays of ids (4 bytes a token).

    Attributes:
        lost_words: row number -> the words that have no recorded position.
        group_of_row: the group of each row; empty if no column of groups is named.
        questions: the number of questions if the rows are windows of their contexts; otherwise None.
    """

    def __init__(
        self,
        task: Task,
        paths: Sequence[str],
        columns: Columns,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        label_names: tuple[str, ...] | None = None,
        positions: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        stride: int = DEFAULT_STRIDE,
    ) -> None:
        task.check_tokenizer(tokenizer)
        label_names = task.label_names or label_names
        position = task.check_positions(positions)
        if task.has_labels and label_names is None:
            label_names = Corpus(paths, columns, limit).label_names()
        how = Tokenizing(tokenizer, max_length, label_names or (), position, seed, columns.shape.is_chat, stride)
        task.check_tokenizing(how)
        self._corpus = corpus = task.corpus(how, paths, columns, limit)
        survey = corpus.survey(check=lambda example: task.check_row(how, example), block_rows=TEXT_GROUP_ROWS)
        self.questions = survey.examples if task.splits_examples else None
        self._groups = []
        self.lost_words: dict[int, LostWords] = {}
        self.group_of_row: list[str] = []
        for _, first_row, parse in corpus.blocks(TEXT_GROUP_ROWS):
            examples = parse()
            self.group_of_row += [example.group for example in examples if example.group is not None]
            rows = task.tokenize(how, examples, first_row)
            self.lost_words |= {first_row + at: row.lost for at, row in enumerate(rows) if row.lost is not None}
            group = row_group(rows, range(first_row, first_row + len(rows)))
            self._groups.append(group)
        super().__init__(
            name=", ".join(paths),
            fingerprint=survey.fingerprint,
            task=task,
            tokenizer=tokenizer,
            label_names=label_names if task.has_labels else None,
            vocabulary=len(tokenizer),
            max_length=max_length,
            group_rows=tuple(len(group.rows) for group in self._groups),
            has_gold=task.is_labelled(survey.labelled_rows),
            layout=task.layout(position),
            positions=how.positions,
        )

    def load(self, group: int, columns: Sequence[str]) -> RowGroup:
        loaded = self._groups[group]
        return replace(loaded, columns={name: loaded.columns[name] for name in (*self.layout.columns, *columns)})

    def examples(self) -> Iterator[Example]:
        """Yield the example from which each row was made, in order."""
        for *_, parse in self._corpus.blocks(TEXT_GROUP_ROWS):
            yield from parse()

    def sizes(self, columns: Sequence[str]) -> GroupSizes:
        # As for a dump, a row without tokens counts as one.
        tokens = np.asarray([np.maximum(np.diff(group.token_offsets), 1).sum() for group in self._groups])
        positions = np.asarray([len(group.positions) for group in self._groups])
        return GroupSizes(np.asarray(self.group_rows), tokens, 4 * tokens + 8 * positions)


def _tokenizer_of(folder: Folder) -> PreTrainedTokenizerBase:
    with on_disk(folder) as path:
        return load_tokenizer(str(path), RecipeError, name=str(folder))
