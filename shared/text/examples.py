"""Examples, the rows of a corpus, with every value checked: text (or words, or a chat), pair, gold label and group."""

import math
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from shared.errors import CorpusError, UsageError
from shared.text.columns import TEXT

Row = dict[str, Any]

# One message of a chat: role, content, and other keys that the template reads (name, tool_calls, ...).
Message = dict[str, Any]
# A name or a number as text, so that 1 in JSON and 1 in CSV are the same label; None for a missing label.
Label = str | None


class Answers(NamedTuple):
    """The gold answers to a question and the characters of its context at which they begin; empty if it has none."""

    texts: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a corpus.

    Attributes:
        text: its text, or words, or messages; for questions, the question.
        pair: the second text of a pair; for questions, the context.
        label: its gold label, or one tag per word, or the answers to a question, or the score of a pair.
        group: the group with which it is scored; models do not see it.
        window: if an example of the files becomes several rows, the number of this row among them.
        number: in that case, the number of the example in the files.
    """

    text: str | list[str] | list[Message]
    pair: str | None = None
    label: Label | list[Label] | Answers | float = None
    group: str | None = None
    window: int = 0
    number: int | None = None


@dataclass(frozen=True)
class Shape:
    """The kind of values in the columns of a row. A task that reads other rows defines its own shape.

    Attributes:
        text: (row, column of texts, where) -> the text of an example; `where` names the row in messages.
        label: (row, columns, text, where) -> its gold label.
        of_line: a line of a .txt file -> the value of its column of texts.
        is_chat: whether the text is a list of messages.
        is_words: whether the text is a list of words, with a list of tags.
    """

    text: Callable[[Row, str, str], Any]
    label: Callable[[Row, "Columns", Any, str], Any]
    of_line: Callable[[str], Any] = str
    is_chat: bool = False
    is_words: bool = False


def _string(row: Row, column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise CorpusError(f"{where}: column {column!r} holds {value!r}, which is not text; correct or drop this row.")
    return value


def _group(row: Row, column: str, where: str) -> str:
    group = _label(row.get(column), where)
    if group is None:
        raise CorpusError(f"{where}: column {column!r} is empty; name the group of every row, or score without groups.")
    return group


def _words(row: Row, column: str, where: str) -> list[str]:
    value = row.get(column)
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise CorpusError(f"{where}: column {column!r} must hold a list of words, but holds {str(value)[:80]!r}.")
    return value


def _messages(row: Row, column: str, where: str) -> list[Message]:
    """The messages of a chat, without keys whose value is None.

    Parquet gives every message the keys of all messages, and templates of transformers expect missing keys instead.
    """
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
        content = message.get("content")
        has_content = isinstance(content, (str, list)) or ("content" not in message and "tool_calls" in message)
        if not isinstance(message.get("role"), str) or not has_content:
            raise CorpusError(
                f"{where}: message {number} of column {column!r} must have a 'role' and a 'content' that are text "
                f"(with 'tool_calls', the content may be missing), but is {str(message)[:80]!r}."
            )
    return messages


def _one_label(row: Row, columns: "Columns", text: str, where: str) -> Label:
    return None if columns.label is None else _label(row.get(columns.label), where)


def _tags(row: Row, columns: "Columns", words: list[str], where: str) -> list[Label] | None:
    value = None if columns.label is None else row.get(columns.label)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != len(words):
        raise CorpusError(f"{where}: column {columns.label!r} must hold one tag for each of the {len(words)} words.")
    return [_label(tag, where) for tag in value]


def _answers(row: Row, columns: "Columns", question: str, where: str) -> Answers | None:
    """The gold answers of a question: None if they are not known, and empty if it has no answer."""
    if columns.impossible is not None and row.get(columns.impossible):
        return Answers()
    value = None if columns.label is None else row.get(columns.label)
    texts, starts = _in_two_lists(value, row.get(str(columns.starts)))
    if texts is None:
        return None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise CorpusError(f"{where}: column {columns.label!r} must hold a list of answers, not {str(texts)[:80]!r}.")
    if not isinstance(starts, list) or any(type(start) is not int for start in starts):
        raise CorpusError(
            f"{where}: column {columns.starts!r} must hold a list of whole numbers (the characters of the context at "
            f"which the answers begin), not {str(starts)[:80]!r}."
        )
    if len(starts) != len(texts):
        raise CorpusError(f"{where}: there are {len(texts)} answers in {columns.label!r} and {len(starts)} starts.")
    return Answers(tuple(texts), tuple(starts))


def _in_two_lists(answers: Any, starts: Any) -> tuple[Any, Any]:
    """Return (texts, starts) of answers that may have both: {"text": [...], "answer_start": [...]}, or a list of
    {"text": ..., "answer_start": ...}; otherwise the starts are those of the other column, and none of no answers."""
    if isinstance(answers, dict):
        return answers.get("text"), answers.get("answer_start")
    if isinstance(answers, list) and answers and all(isinstance(answer, dict) for answer in answers):
        return [answer.get("text") for answer in answers], [answer.get("answer_start") for answer in answers]
    return answers, [] if answers == [] and starts is None else starts


def _label(value: Any, where: str) -> Label:
    """The label as text, or None for null, NaN (from pandas) or an empty string (from CSV).

    A float without a fraction is an integer of pandas.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if is_whole and not isinstance(value, bool):
        return str(int(value))
    raise CorpusError(f"{where}: {value!r} is not a label; labels are names or numbers.")


def _score(row: Row, columns: "Columns", text: str, where: str) -> float:
    value = row.get(str(columns.label))
    try:
        score = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise CorpusError(
            f"{where}: column {columns.label!r} holds {str(value)[:80]!r}, but a pair's score is a number; correct or "
            "drop this row."
        )
    return score


# One string; lists of words, with lists of tags; lists of messages; questions, with lists of answers; pairs of strings
# with a number.
TEXTS = Shape(_string, _one_label)
WORDS = Shape(_words, _tags, of_line=str.split, is_words=True)
CHATS = Shape(_messages, _one_label, is_chat=True)
QUESTIONS = Shape(_string, _answers)
SCORED_PAIRS = Shape(_string, _score)


@dataclass(frozen=True)
class Columns:
    """The names of the columns that a task reads, and the shape of their values.

    Attributes:
        text: the text; for questions, the question.
        pair: the second text of a pair; for questions, the context.
        label: the gold label; for questions, a list of answers.
        label_required: whether the label column must exist; if it is optional and missing, no row is labelled.
        shape: the kind of values.
        group: the group with which a row is scored, such as a language.
        starts: for questions, the list of the first characters of the answers.
        impossible: for questions, whether there is no answer; the column may be missing.
        other_label: the column that has the gold labels in files without a column `label`.
        classes: the names of the classes, if they are known, for files that have names of their own.
    """

    text: str
    pair: str | None = None
    label: str | None = None
    label_required: bool = False
    shape: Shape = TEXTS
    group: str | None = None
    starts: str | None = None
    impossible: str | None = None
    other_label: str | None = None
    classes: tuple[str, ...] = ()

    def as_named_in(self, names: Container[str]) -> "Columns":
        """Return the columns of a file, or of a row, that has columns of these names."""
        if self.label is None or self.label in names or self.other_label not in names:
            return self
        return replace(self, label=self.other_label)

    @property
    def named(self) -> list[str]:
        """The names of all columns that are read; some of them may be missing from the files."""
        every = (self.text, self.pair, self.label, self.group, self.starts, self.impossible)
        return [name for name in every if name is not None]

    @classmethod
    def of_chats(cls, messages: str, text: str, pair: str | None) -> "Columns":
        """The columns of a corpus of chats. Raises UsageError if a column of texts was named as well."""
        if text != TEXT or pair is not None:
            beside = f"text column {text!r}" if pair is None else f"pair column {pair!r}"
            raise UsageError(
                f"the messages column {messages!r} holds the whole row, so a {beside} cannot be used with it; name one "
                "or the other."
            )
        return cls(messages, shape=CHATS)

    @classmethod
    def of_questions(
        cls,
        question: str,
        context: str,
        answers: str | None,
        starts: str,
        impossible: str | None,
        label_required: bool,
        other_label: str | None = None,
    ) -> "Columns":
        """The columns of a corpus of questions with contexts."""
        columns = cls(question, context, answers, label_required, QUESTIONS, starts=starts, impossible=impossible)
        return replace(columns, other_label=other_label)


def example_of(row: Row, columns: Columns, where: str) -> Example:
    """The example in a row of a file. Raises CorpusError for an invalid value; the message begins with `where`."""
    columns = columns.as_named_in(row)
    text = columns.shape.text(row, columns.text, where)
    pair = None if columns.pair is None else _string(row, columns.pair, where)
    group = None if columns.group is None else _group(row, columns.group, where)
    return Example(text, pair, columns.shape.label(row, columns, text, where), group)
