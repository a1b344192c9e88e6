"""The names of the columns that files of rows have: one value, which command lines, recipes and tasks share.

Declared here once, with the help that command lines show; which of the columns it reads, a task says.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_doc import Doc

TEXT, LABEL, TAGS, ANSWERS = "text", "label", "tags", "answer_texts"
IGNORED = "none"


@dataclass(frozen=True)
class ColumnNames:
    """Which columns of the files hold what.

    Three of them hold gold labels, depending on the task: `label_column`, `tags_column` and `answers_column`. None as
    their name means the usual one, where the files have it (see `gold_column`).
    """

    text_column: Annotated[str, Doc("Column of texts.")] = TEXT
    pair_column: Annotated[str | None, Doc("Column of the second text, for pairs.")] = None
    messages_column: Annotated[
        str | None,
        Doc(
            "Column of chats in place of texts (causal-lm): lists of messages with a role and a content, which the "
            "model's own chat template renders."
        ),
    ] = None
    label_column: Annotated[str | None, Doc("Column of gold labels.")] = LABEL
    tokens_column: Annotated[str, Doc("Column of word lists (token-classification).")] = "tokens"
    tags_column: Annotated[str | None, Doc("Column of tag lists, one tag a word.")] = TAGS
    question_column: Annotated[str, Doc("Column of questions (question-answering).")] = "question"
    context_column: Annotated[str, Doc("Column of the contexts that hold the answers.")] = "context"
    answers_column: Annotated[str | None, Doc("Column of lists of gold answers, empty where there is none.")] = ANSWERS
    starts_column: Annotated[str, Doc("Column of lists: at which character of the context each answer begins.")] = (
        "answer_starts"
    )
    impossible_column: Annotated[
        str, Doc("Column that is true for questions without an answer, where there is one.")
    ] = "is_impossible"


@dataclass(frozen=True)
class ScoredColumns(ColumnNames):
    """Those of a held-out file, in which a column may name the group of each row: a language, a domain."""

    group_column: Annotated[
        str | None,
        Doc("Column by whose values rows are also scored apart, each value for itself, and the mean over them."),
    ] = None


def gold_column(named: str | None, usual: str, required: bool | None = None) -> tuple[str | None, bool]:
    """(the column of gold labels, or None for no such column; whether it must be there).

    `named` is what the user says: a column's name, None for the `usual` one, or "none" for no gold labels. `required`
    None means that a column must be there where the user has named it.

    Example:
        >>> gold_column(None, "label"), gold_column("stars", "label"), gold_column("none", "label")
        (('label', False), ('stars', True), (None, False))
        >>> gold_column("label", "label", required=False)
        ('label', False)
    """
    if required is not None:
        return named or usual, required
    return (None, False) if named == IGNORED else (named or usual, named is not None)
