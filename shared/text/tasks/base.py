"""The contract of a task: the columns that it reads, its rows, its models' logits, and its metrics.

A task turns an example into rows of token ids, recorded positions and gold labels. Each task is one object of the table
`TASKS`. `dump`, training on gold labels and `distill eval` get everything that depends on the task from it, and never
ask which task it is. A position is an index into a row's tokens. The layout (`shared.dump.layouts`) says where in a row
something is recorded; a task has one layout for each choice of positions.

Shapes: B rows, L tokens of the longest, C classes, S distributions of a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shared.dump.facts import OffsetsFact
from shared.dump.layouts import LAYOUTS, BatchIndex, Layout
from shared.errors import UsageError
from shared.registry import Registry
from shared.text.beginnings import beginning, beginning_of_words, beginnings_of_pair
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
        architectures: endings of the names of these models' classes.
        layouts: choice of positions (None if there is no choice) -> name of the layout; the default is first.
        predicts_vocabulary: whether distributions are over the vocabulary. The head can then be applied to some
            positions at a time, and the text itself is the gold label.
        has_embeddings: whether its models give one vector for each row, pooled from those of its tokens.
        has_labels: whether its classes are labels, with names in a fixed order.
        label_names: the label names if they are the same for all data and models; otherwise None.
        scores_rows: whether predictions are kept row by row, so that groups of rows can be scored separately.
        needs_examples: whether its metrics need the example from which each row was made.
        scoring_columns: names of `TokenizedRow.columns` that its metrics need for each recorded position.
        reads_chats: whether its rows may be lists of messages.
        loss_positions: the choice of positions at which gold labels give a training loss, where not every choice does;
            None for any.
        chain_positions: the choice of positions at which a row has a tag for each word, so that its tags are a chain.
        splits_examples: whether an example of the files may become several rows, windows that overlap by `stride`.
        is_causal: whether its models must not see the tokens after a position.
        config_values: values that a student's configuration must have, if it has these fields.
        optional_weights: parts of the names of weights that a checkpoint may lack.
    """

    name: ClassVar[str]
    auto_class: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    layouts: ClassVar[Mapping[str | None, str]]
    predicts_vocabulary: ClassVar[bool] = False
    has_embeddings: ClassVar[bool] = False
    has_labels: ClassVar[bool] = False
    label_names: ClassVar[tuple[str, ...] | None] = None
    scores_rows: ClassVar[bool] = False
    needs_examples: ClassVar[bool] = False
    scoring_columns: ClassVar[tuple[str, ...]] = ()
    reads_chats: ClassVar[bool] = False
    loss_positions: ClassVar[str | None] = None
    chain_positions: ClassVar[str | None] = None
    splits_examples: ClassVar[bool] = False
    is_causal: ClassVar[bool] = False
    config_values: ClassVar[Mapping[str, Any]] = {}
    optional_weights: ClassVar[tuple[str, ...]] = ()

    @property
    def is_scored(self) -> bool:
        """Whether the task has metrics: of its predictions, or of its embeddings of pairs of texts."""
        return self.has_predictions or self.has_embeddings

    @property
    def has_predictions(self) -> bool:
        """Whether the task has predictions, and can be learnt from gold labels."""
        return all(LAYOUTS.named(name).has_distributions for name in self.layouts.values())

    # ---------------------------------------------------------------- files

    def columns(self, names: ColumnNames, labels_required: bool | None = None) -> Columns:
        """The columns that the task reads.

        Args:
            names: the names of all columns.
            labels_required: whether the column of gold labels must exist; None if only a named one must.

        Raises:
            UsageError: for chats if the task reads none, or for a column of chats together with one of texts.
        """
        if names.messages_column is not None:
            self._check_reads_chats()
            return Columns.of_chats(names.messages_column, names.text_column, names.pair_column)
        return self.columns_of_texts(names, labels_required)

    def columns_of_texts(self, names: ColumnNames, labels_required: bool | None) -> Columns:
        """The columns of rows that are not chats: text, second text of a pair, and label if classes are labels."""
        gold: tuple[str | None, bool] = (None, False)
        if self.has_labels:
            gold = gold_column(names.label_column, LABEL, labels_required)
        return Columns(names.text_column, names.pair_column, *gold)

    def scored_columns(self, names: ScoredColumns) -> Columns:
        """The columns of a held-out file: with required gold labels, and optionally the group of each row.

        Raises:
            UsageError: as `columns` does, and for groups if the task is not scored row by row.
        """
        if names.group_column is not None and not self.scores_rows:
            able = ", ".join(task.name for task in TASKS.values() if task.scores_rows)
            raise UsageError(
                f"the group column {names.group_column!r} is for tasks that are scored row by row ({able}), but this "
                f"is {self.name}; leave it out."
            )
        return replace(self.columns(names, labels_required=True), group=names.group_column)

    def corpus(self, how: Tokenizing, paths: Sequence[str], columns: Columns, limit: int | None = None) -> Corpus:
        """The corpus in these files; each example becomes `count_rows` rows."""
        count_rows = (lambda example: self.count_rows(how, example)) if self.splits_examples else None
        return Corpus(paths, replace(columns, classes=how.label_names), limit, count_rows)

    def count_rows(self, how: Tokenizing, example: Example) -> int:
        """The number of rows that are made from an example. Raises CorpusError if none can be made."""
        return 1

    def is_labelled(self, labelled_rows: int) -> bool:
        """Whether a corpus with this number of labelled rows in its files has gold labels."""
        return self.predicts_vocabulary or labelled_rows > 0

    # ---------------------------------------------------------------- rows

    def check_positions(self, choice: str | None) -> str | None:
        """The choice of recorded positions, or the default for None. Raises UsageError for an unknown choice."""
        if choice is not None and choice not in self.layouts:
            valid = ", ".join(name for name in self.layouts if name is not None)
            what = f"it has {valid}" if valid else "there is nothing to choose"
            raise UsageError(f"positions {choice!r} do not fit the task {self.name}: {what}.")
        return choice or next(iter(self.layouts))

    def layout(self, positions: str | None) -> Layout:
        """The layout for this choice of positions."""
        return LAYOUTS.named(self.layouts[positions])

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that the tokenizer has what the task needs. Raises UsageError if it does not."""
        if not tokenizer.is_fast:
            raise UsageError(
                "this tokenizer is a slow one; Lectern needs a fast one (with a tokenizer.json), which dumps contain."
            )

    def check_tokenizing(self, how: Tokenizing) -> None:
        """Check the settings before any row is read. Raises UsageError if task or tokenizer do not support them."""
        if how.chats:
            self._check_reads_chats()

    def _check_reads_chats(self) -> None:
        if not self.reads_chats:
            able = ", ".join(task.name for task in TASKS.values() if task.reads_chats)
            raise UsageError(f"the task {self.name} reads no messages column; chats are for {able}.")

    def check_row(self, how: Tokenizing, example: Example) -> None:
        """Check an example. Raises CorpusError if it cannot be tokenized, or has an unknown gold label."""
        if self.has_labels:
            for label in example.label if isinstance(example.label, list) else [example.label]:
                assert not isinstance(label, Answers | float)
                label_index(label, how.label_names)

    @abstractmethod
    def tokenize(self, how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
        """The rows as token ids, recorded positions and gold labels; `first_row` is the number of the first row."""

    def offsets_fact(self, how: Tokenizing) -> OffsetsFact | None:
        """Return how gold labels were placed, where earlier versions placed them otherwise; see `TokenizerFacts`."""
        return None

    # ---------------------------------------------------------------- models

    def fits(self, architectures: Sequence[str]) -> bool:
        """Whether a model of one of these classes has a head for this task."""
        return any(name.endswith(self.architectures) for name in architectures)

    def label_names_of(self, config: Any) -> tuple[str, ...] | None:
        """The label names of a model with this configuration, in order; None if classes are not labels."""
        if not self.has_labels:
            return None
        return self.label_names or tuple(str(config.id2label[index]) for index in range(config.num_labels))

    @property
    def packs(self) -> bool:
        """Whether rows may be packed one after the other: not if a model pools a row or has inputs beside tokens."""
        layouts = [LAYOUTS.named(name) for name in self.layouts.values()]
        return not any(layout.by_row or layout.columns for layout in layouts)

    def logits_of(self, output: Any) -> Tensor | None:
        """The logits in a model's output: [B, L, C], or one per row [B, C]; None if the task has none."""
        logits: Tensor | None = getattr(output, "logits", None)
        return logits

    # ---------------------------------------------------------------- metrics

    def notes(
        self, rows: Sequence[int], logits: Tensor, index: BatchIndex, columns: Mapping[str, Tensor]
    ) -> dict[int, Any]:
        """Values that the metrics need in addition to the most probable classes, by the rows' numbers.

        It is called for batches that have the `scoring_columns`.

        Args:
            rows: the numbers of the batch's rows in their source.
            logits: [S, C], the distributions.
            index: the indices of the distributions.
            columns: the `scoring_columns`, one entry for each recorded position.
        """
        return {}

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Name and value of each metric, the main one first; empty if no position has a gold label."""
        return {}


# Filled in table.py; defined here so that a task's messages can list other tasks.
TASKS: Registry[Task] = Registry("task")


def encode(how: Tokenizing, examples: Sequence[Example], **options: Any) -> Any:
    """The tokenizer's encoding of texts, or pairs of texts, truncated to the maximal length."""
    has_pairs = bool(examples) and examples[0].pair is not None
    parts = [_beginning(how, example) for example in examples]
    return how.tokenizer(
        [text for text, _ in parts],
        [pair for _, pair in parts] if has_pairs else None,
        truncation=True,
        max_length=how.max_length,
        return_attention_mask=False,
        return_token_type_ids=has_pairs,
        verbose=False,
        **options,
    )


def _beginning(how: Tokenizing, example: Example) -> tuple[Any, str | None]:
    """Text (or words) and pair, without what is far beyond the maximal length."""
    text, pair, tokenizer = example.text, example.pair, how.tokenizer
    if tokenizer.truncation_side != "right":
        return text, pair
    if isinstance(text, list):
        return beginning_of_words(tokenizer, cast(list[str], text), how.max_length), pair
    if pair is None:
        return beginning(tokenizer, text, how.max_length), None
    special = tokenizer.num_special_tokens_to_add(pair=True)
    return beginnings_of_pair(tokenizer, text, pair, how.max_length, special)


def token_types(encoded: Any, index: int) -> Int32 | None:
    """The text of a pair (0 or 1) to which each token of an encoded row belongs; None if rows are not pairs."""
    return np.asarray(encoded["token_type_ids"][index], np.int32) if "token_type_ids" in encoded else None
