"""Plain text: a row is a line; for words with tags, what CoNLL files hold if it is that."""

from shared.text.examples import Columns
from shared.text.files.conll import is_conll, read_conll
from shared.text.files.streams import LocatedRows, lines_of


def read_txt(file: str, columns: Columns) -> LocatedRows:
    """One row per line; blank lines are skipped."""
    if columns.shape.is_words and is_conll(file):
        yield from read_conll(file, columns)
        return
    for number, line in lines_of(file):
        if text := line.rstrip("\r\n"):
            yield f"{file}, line {number}", {columns.text: columns.shape.of_line(text)}
