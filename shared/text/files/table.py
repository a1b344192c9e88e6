"""The table of formats: what reads a file, by the ending of its name."""

from collections.abc import Callable
from pathlib import PurePath

from shared.errors import CorpusError
from shared.text.examples import Columns
from shared.text.files.conll import read_conll
from shared.text.files.delimited import read_csv, read_tsv
from shared.text.files.objects import read_json
from shared.text.files.parquet import names_of_labels, read_parquet
from shared.text.files.plain import read_txt
from shared.text.files.streams import COMPRESSIONS, LocatedRows

READERS: dict[str, Callable[[str, Columns], LocatedRows]] = {
    ".txt": read_txt,
    ".jsonl": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    **dict.fromkeys((".conll", ".bio", ".iob", ".iob2"), read_conll),
}


# What reads the names of labels from the metadata of formats that have any.
_NAMES: dict[str, Callable[[str, Columns], tuple[str, ...] | None]] = {".parquet": names_of_labels}


def names_in_metadata(file: str, columns: Columns) -> tuple[str, ...] | None:
    """Return the names that a file's metadata gives the labels, which are numbers then; None if it gives none."""
    read = _NAMES.get(_ending(file))
    return None if read is None else read(file, columns)


def reader_of(file: str) -> Callable[[str, Columns], LocatedRows]:
    """The reader for a file, chosen by the file's name. Raises CorpusError for an unknown kind of file."""
    suffix = _ending(file)
    if suffix not in READERS:
        raise CorpusError(
            f"{file}: unknown kind of file; Lectern reads {', '.join(READERS)}, each also followed by .gz or .zst."
        )
    return READERS[suffix]


def _ending(file: str) -> str:
    path = PurePath(file)
    return PurePath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
