"""JSON: an object per line, which is parsed only when it is needed, or one value: an array of objects, or an object
whose `data` is one (of SQuAD's articles, or of rows)."""

import json
from functools import partial
from typing import Any

from shared.errors import CorpusError
from shared.text.examples import Columns, Row
from shared.text.files.squad import is_squad, rows_of_articles
from shared.text.files.streams import LocatedRows, lines_of

_DATA = '"data"'


def read_json(file: str, columns: Columns) -> LocatedRows:
    """One object per line, or the objects of one value."""
    lines = lines_of(file)
    for number, line in lines:
        if not line.strip():
            continue
        if _begins_value(line, columns, file, number):
            yield from _rows_of_value(_parse_json(line + "".join(rest for _, rest in lines), file, number), file)
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
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{file}, line {number + error.lineno - 1}: not valid JSON ({error.msg}).") from None
