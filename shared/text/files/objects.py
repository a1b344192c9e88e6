"""JSON: an object per line, which is parsed only when it is needed, or one value: an array of objects, or an object
whose `data` is one (of SQuAD's articles, or of rows)."""

from functools import partial
from typing import Any

from shared.errors import CorpusError
from shared.parsing import NotParsed, parse_json
from shared.text.examples import Columns, Row
from shared.text.files.squad import is_squad, rows_of_articles
from shared.text.files.streams import LARGEST_DOCUMENT, Lines, LocatedRows, lines_of, too_large

_DATA = '"data"'


def read_json(file: str, columns: Columns) -> LocatedRows:
    """One object per line, or the objects of one value."""
    # All of the file may be one line.
    lines = lines_of(file, longest_first=LARGEST_DOCUMENT)
    for number, line in lines:
        if not line.strip():
            continue
        if _begins_value(line, columns, file, number):
            yield from _rows_of_value(_parse_json(_joined(line, lines, file), file, number), file)
            return
        yield f"{file}, line {number}", partial(_parse_object, line, file, number)


def _begins_value(line: str, columns: Columns, file: str, number: int) -> bool:
    """Whether the first line of a file begins a value that holds all rows: an array, an object that breaks off at the
    end of the line, or one that is no row itself but has rows in `data`."""
    bare = line.strip()
    if not bare.startswith("{"):
        return bare.startswith("[")
    if not bare.endswith("}"):
        return bare == "{" or _DATA in bare
    if _DATA not in bare:
        return False
    found = _parse_object(line, file, number)
    data = found.get("data")
    return columns.text not in found and isinstance(data, list) and all(isinstance(row, dict) for row in data)


def _joined(line: str, rest: Lines, file: str) -> str:
    """Return the whole text of a value. Raises CorpusError if it is too large to be read as a whole."""
    parts, size = [line], len(line)
    for _, part in rest:
        parts.append(part)
        size += len(part)
        if size > LARGEST_DOCUMENT:
            raise too_large(file, "write one object per line")
    return "".join(parts)


def _rows_of_value(value: Any, file: str) -> LocatedRows:
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise CorpusError(
            f"{file}: one object over several lines, without a list 'data'; give an array of objects, or an object per "
            "line."
        )
    if is_squad(rows):
        yield from rows_of_articles(file, rows)
        return
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise CorpusError(f"{file}, item {index}: expected an object, found {str(row)[:80]!r}.")
        yield f"{file}, item {index}", row


def _parse_object(line: str, file: str, number: int) -> Row:
    value = _parse_json(line.rstrip(), file, number)
    if not isinstance(value, dict):
        raise CorpusError(f"{file}, line {number}: expected one JSON object per line, found {line.strip()[:80]!r}.")
    return value


def _parse_json(text: str, file: str, number: int) -> Any:
    """The parsed JSON text, which begins at line `number` of the file."""
    try:
        return parse_json(text)
    except NotParsed as error:
        line = number + (error.line or 1) - 1
        raise CorpusError(f"{file}, line {line}: {error.reason}.") from None
