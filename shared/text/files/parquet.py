"""Parquet, of which only the columns that are needed are read."""

import io
from pathlib import PurePath

import pyarrow as pa
import pyarrow.parquet as pq

from shared.text.examples import Columns
from shared.text.files.class_names import class_names, labels_by_name
from shared.text.files.streams import COMPRESSIONS, LocatedRows, document_in, open_file, unreadable


def names_of_labels(file: str, columns: Columns) -> tuple[str, ...] | None:
    """Return the names that a file's metadata gives the labels, which are numbers then; None if it gives none."""
    with open_file(file) as stream:
        try:
            schema = _opened(file, stream).schema_arrow
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise unreadable(file, error) from None
    return class_names(schema.metadata, columns.as_named_in(schema.names).label)


def _opened(file: str, stream: io.BufferedReader) -> pq.ParquetFile:
    is_compressed = PurePath(file).suffix in COMPRESSIONS
    return pq.ParquetFile(io.BytesIO(document_in(stream, file, "decompress it")) if is_compressed else stream)


def read_parquet(file: str, columns: Columns) -> LocatedRows:
    with open_file(file) as stream:
        try:
            parquet = _opened(file, stream)
            present, metadata = parquet.schema_arrow.names, parquet.schema_arrow.metadata
            columns = columns.as_named_in(present)
            read = [name for name in columns.named if name in present]
            names = class_names(metadata, columns.label)
            label_of = None if names is None else labels_by_name(file, names, columns.classes)
            number = 0
            for batch in parquet.iter_batches(batch_size=1024, columns=read):
                # The first row has the names of all columns, for the check of missing ones.
                for row in batch.to_pylist():
                    if label_of is not None:
                        row[columns.label] = label_of(row[columns.label])
                    yield f"{file}, row {number}", dict.fromkeys(present) | row if number == 0 else row
                    number += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise unreadable(file, error) from None
