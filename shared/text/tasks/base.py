"""What a task is: which columns it reads, how a row becomes token ids, recorded positions and gold labels, what a
model's output says there, and how predictions become metrics.

A task is one object of the table `TASKS`. `dump`, training on gold labels and `distill eval` ask it whatever depends on
the task, and never which one it is. A position is an index into a row's tokens; where in a row something is recorded,
a layout (`shared.dump.layouts`) says, of which a task has one for each choice of positions.

Shapes: B rows, L tokens of the longest, C classes, S distributions of a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shared.dump.layouts import LAYOUTS, BatchIndex, Layout
from shared.errors import UsageError
from shared.registry import Registry
from shared.text.columns import LABEL, ColumnNames, ScoredColumns, gold_column
from shared.text.corpus import Corpus
from shared.text.examples import Answers, Columns, Example
from shared.text.labels import label_index
from shared.text.predictions import Predictions
from shared.text.tokenized import Int32, TokenizedRow, Tokenizing


class Task(ABC):
    """One task.

    Attributes:
        name: its name in the table, in manifests and on the command line.
        auto_class: the class of transformers that loads its models.
        architectures: how the names of such models' classes end.
        layouts: each choice of positions, the default first (None where there is no choice) -> the name of the layout.
        predicts_vocabulary: whether distributions are over the vocabulary, so that a model's head may be asked for
            them at some positions at a time, and the text itself is the gold label.
        has_labels: whether its classes are labels with names in order.
        label_names: those of every model of the task, where data and models have no say.
        scores_rows: whether predictions are kept row by row, so that groups of rows can be scored apart.
        needs_examples: whether its metrics look at what each row was made from.
        scoring_columns: what they also need of each recorded position (of `TokenizedRow.columns`).
        reads_chats: whether its rows may be lists of messages.
        splits_examples: whether an example of the files may become several rows, windows that overlap by `stride`.
        is_causal: whether its models must not see the tokens behind a position.
        config_values: what a student's configuration must say where it has the field.
        optional_weights: parts of the names of weights that a checkpoint may lack.
    """

    name: ClassVar[str]
    auto_class: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    layouts: ClassVar[Mapping[str | None, str]]
    predicts_vocabulary: ClassVar[bool] = False
    has_labels: ClassVar[bool] = False
    label_names: ClassVar[tuple[str, ...] | None] = None
    scores_rows: ClassVar[bool] = False
    needs_examples: ClassVar[bool] = False
    scoring_columns: ClassVar[tuple[str, ...]] = ()
    reads_chats: ClassVar[bool] = False
    splits_examples: ClassVar[bool] = False
    is_causal: ClassVar[bool] = False
    config_values: ClassVar[Mapping[str, Any]] = {}
    optional_weights: ClassVar[tuple[str, ...]] = ()

    @property
    def is_scored(self) -> bool:
        """Whether there are predictions, and so metrics."""
        return all(LAYOUTS.named(name).has_distributions for name in self.layouts.values())

    # ---------------------------------------------------------------- files

    def columns(self, names: ColumnNames, labels_required: bool | None = None) -> Columns:
        """The columns that it reads of those named. `labels_required`: whether that of gold labels must be there; None
        for where it is named.

        Raises:
            UsageError: for chats where the task reads none, or a column of chats and one of texts at once.
        """
        if names.messages_column is not None:
            self._check_reads_chats()
            return Columns.of_chats(names.messages_column, names.text_column, names.pair_column)
        return self.columns_of_texts(names, labels_required)

    def columns_of_texts(self, names: ColumnNames, labels_required: bool | None) -> Columns:
        """Those of rows that are no chats: a text, perhaps a second one, and where classes are labels, a label."""
        gold: tuple[str | None, bool] = (None, False)
        if self.has_labels:
            gold = gold_column(names.label_column, LABEL, labels_required)
        return Columns(names.text_column, names.pair_column, *gold)

    def scored_columns(self, names: ScoredColumns) -> Columns:
        """Those of a held-out file: gold labels must be there, and a column may name the group of each row.

        Raises:
            UsageError: as `columns` does, and for groups of a task that is not scored row by row.
        """
        if names.group_column is not None and not self.scores_rows:
            able = ", ".join(task.name for task in TASKS.values() if task.scores_rows)
            raise UsageError(
                f"the group column {names.group_column!r} is for tasks that are scored row by row ({able}), and this "
                f"is {self.name}; leave it out."
            )
        return replace(self.columns(names, labels_required=True), group=names.group_column)

    def corpus(self, how: Tokenizing, paths: Sequence[str], columns: Columns, limit: int | None = None) -> Corpus:
        """The corpus in these files, each example of which becomes as many rows as `count_rows` says."""
        count_rows = (lambda example: self.count_rows(how, example)) if self.splits_examples else None
        return Corpus(paths, columns, limit, count_rows)

    def count_rows(self, how: Tokenizing, example: Example) -> int:
        """How many rows an example becomes. Raises CorpusError for one that cannot become any."""
        return 1

    def is_labelled(self, labelled_rows: int) -> bool:
        """Whether a corpus, of whose rows so many have a gold label in the files, has gold labels."""
        return self.predicts_vocabulary or labelled_rows > 0

    # ---------------------------------------------------------------- rows

    def check_positions(self, choice: str | None) -> str | None:
        """The choice of recorded positions, or the default. Raises UsageError for one that it lacks."""
        if choice is not None and choice not in self.layouts:
            valid = ", ".join(name for name in self.layouts if name is not None)
            what = f"it has {valid}" if valid else "there is nothing to choose"
            raise UsageError(f"positions {choice!r} do not fit the task {self.name}: {what}.")
        return choice or next(iter(self.layouts))

    def layout(self, positions: str | None) -> Layout:
        """Where distributions and gold labels are with this choice of positions."""
        return LAYOUTS.named(self.layouts[positions])

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises UsageError where the tokenizer lacks what the task needs."""
        if not tokenizer.is_fast:
            raise UsageError(
                "this tokenizer is a slow one; Lectern needs a fast one (a tokenizer.json), which dumps keep."
            )

    def check_tokenizing(self, how: Tokenizing) -> None:
        """Raises UsageError for what the task or the tokenizer cannot do, before any row is read."""
        if how.chats:
            self._check_reads_chats()

    def _check_reads_chats(self) -> None:
        if not self.reads_chats:
            able = ", ".join(task.name for task in TASKS.values() if task.reads_chats)
            raise UsageError(f"the task {self.name} reads no messages column; chats are for {able}.")

    def check_row(self, how: Tokenizing, example: Example) -> None:
        """Raises CorpusError for a row that cannot be tokenized, or a gold label that is not one of the task's."""
        if self.has_labels:
            for label in example.label if isinstance(example.label, list) else [example.label]:
                assert not isinstance(label, Answers)
                label_index(label, how.label_names)

    @abstractmethod
    def tokenize(self, how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
        """Rows as token ids, recorded positions and gold labels; `first_row` is the number of the first of them."""

    # ---------------------------------------------------------------- models

    def fits(self, architectures: Sequence[str]) -> bool:
        """Whether a model of one of these classes is of this task."""
        return any(name.endswith(self.architectures) for name in architectures)

    def label_names_of(self, config: Any) -> tuple[str, ...] | None:
        """The label names of a model with this configuration, in order; None where classes are no labels."""
        if not self.has_labels:
            return None
        return self.label_names or tuple(str(config.id2label[index]) for index in range(config.num_labels))

    @property
    def packs(self) -> bool:
        """Whether a model may read rows one after the other in a batch: not where it pools a whole row, or is given
        more than its tokens."""
        layouts = [LAYOUTS.named(name) for name in self.layouts.values()]
        return not any(layout.by_row or layout.columns for layout in layouts)

    def logits_of(self, output: Any) -> Tensor | None:
        """What a model's output says: [B, L, C], or of a whole row [B, C]; None where it says nothing."""
        logits: Tensor | None = getattr(output, "logits", None)
        return logits

    # ---------------------------------------------------------------- metrics

    def notes(
        self, rows: Sequence[int], logits: Tensor, index: BatchIndex, columns: Mapping[str, Tensor]
    ) -> dict[int, Any]:
        """What the metrics need of a batch beyond the most probable class of each distribution, by the rows' numbers.
        Asked of batches that have the `scoring_columns`.

        Args:
            rows: the numbers of the batch's rows in their source.
            logits: [S, C], the distributions.
            index: where they are.
            columns: the `scoring_columns`, one entry for each recorded position.
        """
        return {}

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Name and value of each metric, the main one first; empty where nothing is labelled."""
        return {}


# Filled in table.py; here, so that a task can say in messages which others there are.
TASKS: Registry[Task] = Registry("task")


def encode(how: Tokenizing, examples: Sequence[Example], **options: Any) -> Any:
    """The tokenizer's encoding of texts, or pairs of texts, cut to length."""
    texts = [example.text for example in examples]
    pairs = [example.pair for example in examples]
    has_pairs = bool(pairs) and pairs[0] is not None
    return how.tokenizer(
        texts,
        pairs if has_pairs else None,
        truncation=True,
        max_length=how.max_length,
        return_attention_mask=False,
        return_token_type_ids=has_pairs,
        verbose=False,
        **options,
    )


def token_types(encoded: Any, index: int) -> Int32 | None:
    """Which text of a pair each token of an encoded row is of; None where rows are no pairs."""
    return np.asarray(encoded["token_type_ids"][index], np.int32) if "token_type_ids" in encoded else None
