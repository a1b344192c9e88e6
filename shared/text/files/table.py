"""The table of formats: what reads a file, by the ending of its name."""

from collections.abc import Callable
from pathlib import PurePath

from shared.errors import CorpusError
from shared.text.examples import Columns
from shared.text.files.delimited import read_csv, read_tsv
from shared.text.files.objects import read_json
from shared.text.files.parquet import read_parquet
from shared.text.files.plain import read_txt
from shared.text.files.streams import COMPRESSIONS, LocatedRows

READERS: dict[str, Callable[[str, Columns], LocatedRows]] = {
    ".txt": read_txt,
    ".jsonl": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}


def reader_of(file: str) -> Callable[[str, Columns], LocatedRows]:
    """The reader for a file, chosen by the file's name. Raises CorpusError for an unknown kind of file."""
    path = PurePath(file)
    suffix = PurePath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    if suffix not in READERS:
        raise CorpusError(
            f"{file}: unknown kind of file; Lectern reads {', '.join(READERS)}, each also followed by .gz or .zst."
        )
    return READERS[suffix]
