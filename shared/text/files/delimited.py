"""CSV and TSV, whose first line names the columns."""

import csv
from typing import Any

from shared.errors import CorpusError
from shared.text.examples import Columns
from shared.text.files.conll import is_conll, read_conll
from shared.text.files.streams import LONGEST_LINE, LocatedRows, lines_of

csv.field_size_limit(LONGEST_LINE)


def read_csv(file: str, columns: Columns) -> LocatedRows:
    return _read_delimited(file, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def read_tsv(file: str, columns: Columns) -> LocatedRows:
    """Quotes are ordinary characters, as in the files of GLUE, where a single one would join all lines after it.

    Words with tags are in lines without a header (CoNLL), because a field cannot hold a list.
    """
    if columns.shape.is_words and is_conll(file):
        return read_conll(file, columns)
    return _read_delimited(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_delimited(file: str, delimiter: str, quoting: Any) -> LocatedRows:
    reader = csv.reader((line for _, line in lines_of(file)), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        header = next(reader, [])
        for fields in reader:
            where = f"{file}, line {reader.line_num}"
            if not fields:
                continue
            if len(fields) != len(header):
                raise CorpusError(f"{where}: {len(fields)} fields where the header names {len(header)}.")
            yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise CorpusError(f"{file}, line {reader.line_num}: {error}.") from None
