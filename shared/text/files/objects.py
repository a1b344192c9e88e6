"""JSON: an object per line, which is parsed only when it is needed, or one array of objects."""

import json
from functools import partial
from typing import Any

from shared.errors import CorpusError
from shared.text.examples import Columns, Row
from shared.text.files.streams import LocatedRows, lines_of


def read_json(file: str, columns: Columns) -> LocatedRows:
    """One object per line, or one array of objects."""
    lines = lines_of(file)
    for number, line in lines:
        if not line.strip():
            continue
        if line.lstrip().startswith("["):
            rows = _parse_json(line + "".join(rest for _, rest in lines), file, number)
            for index, row in enumerate(rows):
                if not isinstance(row, dict):
                    raise CorpusError(f"{file}, item {index}: expected an object, found {str(row)[:80]!r}.")
                yield f"{file}, item {index}", row
            return
        yield f"{file}, line {number}", partial(_parse_object, line, file, number)


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
