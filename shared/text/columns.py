"""The names of the columns of a corpus, declared once for command lines and recipes, with their help texts.

Each task says which of these columns it reads.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_doc import Doc

TEXT, LABEL, TAGS, ANSWERS, SCORE = "text", "label", "tags", "answer_texts", "score"
IGNORED = "none"


@dataclass(frozen=True)
class ColumnNames:
    """The names of the columns of the files.

    Three of them hold gold labels, depending on the task: `label_column`, `tags_column` and `answers_column`. If their
    name is None, the usual column is read if the files have it (see `gold_column`).
    """

    text_column: Annotated[str, Doc("Column of texts.")] = TEXT
    pair_column: Annotated[str | None, Doc("Column of the second text, for pairs.")] = None
    messages_column: Annotated[
        str | None,
        Doc(
            "Column of chats instead of texts (causal-lm): lists of messages with a role and a content. The model's "
            "own chat template turns them into text."
        ),
    ] = None
    label_column: Annotated[str | None, Doc("Column of gold labels.")] = LABEL
    tokens_column: Annotated[str, Doc("Column of word lists (token-classification).")] = "tokens"
    tags_column: Annotated[
        str | None, Doc("Column of tag lists, one tag per word (`ner_tags` where there is no `tags`).")
    ] = TAGS
    question_column: Annotated[str, Doc("Column of questions (question-answering).")] = "question"
    context_column: Annotated[str, Doc("Column of the contexts that hold the answers.")] = "context"
    answers_column: Annotated[
        str | None,
        Doc("Column of lists of gold answers, empty if there is none (`answers` where there is no `answer_texts`)."),
    ] = ANSWERS
    starts_column: Annotated[
        str, Doc("Column of lists of the characters of the context at which the answers begin.")
    ] = "answer_starts"
    impossible_column: Annotated[str, Doc("Column that is true for questions without an answer; may be missing.")] = (
        "is_impossible"
    )


@dataclass(frozen=True)
class ScoredColumns(ColumnNames):
    """The columns of a held-out file; one of them may name the group of each row, such as a language or a domain."""

    score_column: Annotated[str, Doc("Column of the scores of pairs of texts, any numbers (encoder).")] = SCORE

    group_column: Annotated[
        str | None,
        Doc("Column of groups: each group of rows is also scored separately, and the mean over groups is reported."),
    ] = None


def gold_column(named: str | None, usual: str, required: bool | None = None) -> tuple[str | None, bool]:
    """(the column of gold labels, or None for no such column; whether it must exist).

    `named` is the user's choice: a column's name, None for the `usual` one, or "none" for no gold labels. If `required`
    is None, the column must exist only if the user has named it.

    Example:
        >>> gold_column(None, "label"), gold_column("stars", "label"), gold_column("none", "label")
        (('label', False), ('stars', True), (None, False))
        >>> gold_column("label", "label", required=False)
        ('label', False)
    """
    if required is not None:
        return named or usual, required
    return (None, False) if named == IGNORED else (named or usual, named is not None)
