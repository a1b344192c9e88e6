"""CoNLL files: a word and its tag on each line, the word in the first column and the tag in the last; blank lines
between sentences.

Columns are separated by tabs if the first line of a word has one, otherwise by blanks and tabs. Lines that begin with
`-DOCSTART-` and comments (`# ...` before the first word of a sentence) are skipped. (Tjong Kim Sang and De Meulder
2003, "Introduction to the CoNLL-2003 Shared Task".)
"""

import re
from collections.abc import Iterator
from itertools import islice

from shared.errors import CorpusError
from shared.text.examples import Columns
from shared.text.files.streams import LocatedRows, lines_of

# A tag of an entity's part: outside, or a letter of IOB, BIOES, BILOU or BMES, and the kind of entity.
_TAG = re.compile(r"O|[BIOELSUM]-[A-Za-z]\S*")
_DOCUMENT = "-DOCSTART-"
_SNIFFED_LINES = 1000
_MOST_WORDS = 100_000

# The number of a line, and its columns.
_Line = tuple[int, list[str]]


def read_conll(file: str, columns: Columns) -> LocatedRows:
    """One row per sentence.

    Raises:
        CorpusError: if the task reads no words with tags, or a line has another number of columns than the others.
    """
    if not columns.shape.is_words:
        raise CorpusError(
            f"{file}: a CoNLL file, which has words with tags, but the task reads no lists of words; use "
            "token-classification, or give a file of texts."
        )
    for number, sentence in enumerate(_sentences(file)):
        first, lines = sentence[0][0], [fields for _, fields in sentence]
        if number == 0:
            _check_words_come_first(file, lines)
        row = {columns.text: [fields[0] for fields in lines]}
        if columns.label is not None and len(lines[0]) > 1:
            row[columns.label] = [fields[-1] for fields in lines]
        yield f"{file}, line {first}", row


def is_conll(file: str) -> bool:
    """Whether the first lines of a file, whose name does not tell, are words with tags.

    Raises:
        CorpusError: if most of them are, but not all: then both readings are possible.
    """
    separator, expected, tagged = None, 0, 0
    untagged: list[int] = []
    for number, line in islice(lines_of(file), _SNIFFED_LINES):
        if not line.strip() or line.startswith(_DOCUMENT):
            continue
        separator = separator or _separator(line)
        fields = _fields(line, separator)
        if len(fields) > 1 and _TAG.fullmatch(fields[-1]) and expected in (0, len(fields)):
            expected, tagged = len(fields), tagged + 1
        elif not line.startswith("#"):
            untagged.append(number)
            if not tagged and len(untagged) > 1:  # the first line may be a header
                return False
    if untagged and tagged > len(untagged):
        raise CorpusError(
            f"{file}, line {untagged[0]}: no tag in the last column, though most lines have one; if these are words "
            "with tags (CoNLL), correct or drop this line, or name the file .conll; if each line is a sentence, give "
            "its words as lists in .jsonl."
        )
    return tagged > 1 and not untagged


def _sentences(file: str) -> Iterator[list[_Line]]:
    separator, expected, has_tags = None, 0, False
    sentence: list[_Line] = []
    for number, line in lines_of(file):
        if not line.strip() or line.startswith(_DOCUMENT):
            if sentence:
                yield sentence
            sentence = []
            continue
        fields = _fields(line, separator or _separator(line))
        is_like_others = len(fields) == expected and (not has_tags or bool(_TAG.fullmatch(fields[-1])))
        if line.startswith("#") and not sentence and not is_like_others:
            is_first_word = not expected and len(fields) > 1 and _TAG.fullmatch(fields[-1])
            if not is_first_word:
                continue
        if not expected:
            separator, expected = _separator(line), len(fields)
            has_tags = expected > 1 and bool(_TAG.fullmatch(fields[-1]))
        if len(fields) != expected or not fields[0]:
            raise CorpusError(
                f"{file}, line {number}: {len(fields)} columns where the lines before have {expected}; each line needs "
                "a word in its first and a tag in its last column, separated everywhere by tabs or everywhere by "
                "blanks."
            )
        sentence.append((number, fields))
        if len(sentence) > _MOST_WORDS:
            raise CorpusError(
                f"{file}, line {number}: more than {_MOST_WORDS:,} words without a blank line; put one after each "
                "sentence."
            )
    if sentence:
        yield sentence


def _separator(line: str) -> str:
    return "\t" if "\t" in line.strip() else " "


def _fields(line: str, separator: str) -> list[str]:
    """Return the columns of a line. Words may hold other white space, such as a no-break space."""
    bare = line.rstrip("\r\n\t ")
    return bare.split("\t") if separator == "\t" else re.split(r"[ \t]+", bare.lstrip(" \t"))


def _check_words_come_first(file: str, lines: list[list[str]]) -> None:
    """Refuse files whose first column counts the words, such as CoNLL-U's and GermEval's."""
    if len(lines) > 1 and len(lines[0]) > 2 and all(fields[0] == str(at) for at, fields in enumerate(lines, start=1)):
        raise CorpusError(
            f"{file}: the first column counts the words, so which of the others has words and which tags is not known; "
            "leave two columns, words and tags (for instance with cut -f2,3)."
        )
