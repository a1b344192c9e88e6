"""Which of the files' columns a task reads."""

from dataclasses import replace

from shared.errors import UsageError
from shared.text.columns import ANSWERS, LABEL, TAGS, ColumnNames, ScoredColumns, gold_column
from shared.text.formats import Columns
from shared.text.tasks import TASKS, Task


def columns_of(task: Task, names: ColumnNames, labels_required: bool | None = None) -> Columns:
    """The columns that `task` reads; `labels_required` None: gold labels must be there where their column is named.

    Raises:
        UsageError: for a column of chats and one of texts at once.
    """
    if names.messages_column is not None:
        return Columns.of_chats(names.messages_column, names.text_column, names.pair_column)
    if task.windows is not None:
        answers, required = gold_column(names.answers_column, ANSWERS, labels_required)
        impossible = None if answers is None else names.impossible_column
        named = names.question_column, names.context_column, answers, names.starts_column, impossible
        return Columns.of_questions(*named, label_required=required)
    if task.words:
        text, pair, gold = names.tokens_column, None, gold_column(names.tags_column, TAGS, labels_required)
    else:
        text, pair, gold = names.text_column, names.pair_column, gold_column(names.label_column, LABEL, labels_required)
    label, required = gold if task.classes == "labels" else (None, False)
    return Columns(text, pair, label, label_required=required, words=task.words)


def scored_columns_of(task: Task, names: ScoredColumns) -> Columns:
    """The columns of a held-out file: with gold labels, and perhaps the group of each row.

    Raises:
        UsageError: for a column of chats and one of texts at once, or groups of a task that is not scored row by row.
    """
    by_row = ("labels", "spans")
    if names.group_column is not None and task.classes not in by_row:
        able = ", ".join(each.name for each in TASKS.values() if each.classes in by_row)
        raise UsageError(
            f"the group column {names.group_column!r} is for tasks that are scored row by row ({able}), and this is "
            f"{task.name}; leave it out."
        )
    return replace(columns_of(task, names, labels_required=True), group=names.group_column)
