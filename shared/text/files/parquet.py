"""Parquet, of which only the columns that are needed are read."""

import io
from pathlib import PurePath

import pyarrow as pa
import pyarrow.parquet as pq

from shared.text.examples import Columns
from shared.text.files.streams import COMPRESSIONS, LocatedRows, open_file, unreadable


def read_parquet(file: str, columns: Columns) -> LocatedRows:
    with open_file(file) as stream:
        try:
            compressed = PurePath(file).suffix in COMPRESSIONS
            parquet = pq.ParquetFile(io.BytesIO(stream.read()) if compressed else stream)
            present = parquet.schema_arrow.names
            read = [name for name in columns.named if name in present]
            number = 0
            for batch in parquet.iter_batches(batch_size=1024, columns=read):
                # The first row has the names of all columns, for the check of missing ones.
                for row in batch.to_pylist():
                    yield f"{file}, row {number}", dict.fromkeys(present) | row if number == 0 else row
                    number += 1
        except (pa.ArrowInvalid, OSError) as error:
            raise unreadable(file, error) from None
