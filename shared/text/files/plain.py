"""Plain text: a row is a line."""

from shared.text.examples import Columns
from shared.text.files.streams import LocatedRows, lines_of


def read_txt(file: str, columns: Columns) -> LocatedRows:
    """One row per line; blank lines are skipped."""
    for number, line in lines_of(file):
        if text := line.rstrip("\r\n"):
            yield f"{file}, line {number}", {columns.text: columns.shape.of_line(text)}
