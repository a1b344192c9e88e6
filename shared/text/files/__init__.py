"""Files of every format that is read, as streams of rows."""

from shared.text.files.streams import RawRow
from shared.text.files.table import names_in_metadata, reader_of

__all__ = ["RawRow", "names_in_metadata", "reader_of"]
