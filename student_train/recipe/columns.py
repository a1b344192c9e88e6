"""A recipe's sections about files: which they are, and which of their columns hold what."""

from dataclasses import replace
from typing import Self

from pydantic import Field, model_validator

from shared.errors import UsageError
from shared.storage import Folder
from shared.text.columns import ANSWERS
from shared.text.formats import Columns
from shared.text.lengths import DEFAULT_STRIDE
from shared.text.tasks import TASKS, Task
from student_train.recipe.sections import Section


class ColumnNames(Section):
    """Which columns of a file hold what; the same names as the options of `dump`."""

    text_column: str = "text"
    pair_column: str | None = None
    messages_column: str | None = None
    label_column: str = "label"
    tokens_column: str = "tokens"
    tags_column: str = "tags"
    question_column: str = "question"
    context_column: str = "context"
    answers_column: str = ANSWERS
    starts_column: str = "answer_starts"
    impossible_column: str = "is_impossible"

    def columns(self, task: Task, labels_required: bool) -> Columns:
        """The columns that `task` reads. Raises UsageError for chats and texts at once."""
        if self.messages_column is not None:
            return Columns.of_chats(self.messages_column, self.text_column, self.pair_column)
        if task.windows is not None:
            names = self.question_column, self.context_column, self.answers_column, self.starts_column
            return Columns.of_questions(*names, self.impossible_column, label_required=labels_required)
        label = self.tags_column if task.words else self.label_column
        text = self.tokens_column if task.words else self.text_column
        needs_labels = task.classes == "labels"
        return Columns(
            text,
            None if task.words else self.pair_column,
            label if needs_labels else None,
            label_required=needs_labels and labels_required,
            words=task.words,
        )


class ScoredColumns(ColumnNames):
    """Those of a held-out file, in which a column may name the group of each row: a language, a domain."""

    group_column: str | None = None

    def columns(self, task: Task, labels_required: bool) -> Columns:
        """With the column of groups. Raises UsageError for a task that is not scored row by row."""
        by_row = ("labels", "spans")
        if self.group_column is not None and task.classes not in by_row:
            able = ", ".join(each.name for each in TASKS.values() if each.classes in by_row)
            raise UsageError(
                f"the group column {self.group_column!r} is for tasks that are scored row by row ({able}), and this is "
                f"{task.name}; leave it out."
            )
        return replace(super().columns(task, labels_required), group=self.group_column)


class DataSection(ColumnNames):
    """[data]: files with gold labels to learn from, in place of a dump.

    `labels` are the label names in order (by default those that occur, sorted); `tokenizer` is a folder or hub id, by
    default that of a pretrained student. `stride` is by how many tokens the windows of a question's context overlap.
    """

    task: str
    train: tuple[str, ...] = Field(min_length=1)
    labels: tuple[str, ...] | None = None
    tokenizer: str | None = None
    max_length: int = Field(default=512, ge=2)
    positions: str | None = None
    stride: int = Field(default=DEFAULT_STRIDE, ge=0)
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _known_task(self) -> Self:
        trainable = [name for name, task in TASKS.items() if task.classes is not None]
        if self.task not in trainable:
            raise ValueError(f"task {self.task!r} is unknown here; the valid ones are {', '.join(trainable)}")
        return self


class EvalSection(ScoredColumns):
    """[eval]: a held-out file to score the finished student on, and a dump of held-out rows for its agreement. `stride`
    is by how many tokens the windows of a question's context overlap."""

    data: tuple[str, ...] = Field(min_length=1)
    positions: str | None = None
    stride: int = Field(default=DEFAULT_STRIDE, ge=0)
    dump: Folder | None = None
