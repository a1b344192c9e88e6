"""Shards as a lazy polars frame."""

from collections.abc import Iterator, Sequence

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.io.plugins import register_io_source

from shared.storage import Folder


def scan_shards(files: Sequence[Folder], schema: pa.Schema) -> pl.LazyFrame:
    """Return the rows of Parquet files with this schema, one file after the other.

    If all files are on this machine, polars itself reads them, in parallel, and skips row groups that a filter
    excludes. Other files are fetched one row group after another: only the columns that are needed, but always all rows
    of a row group.
    """
    local = [file.local for file in files if file.local is not None]
    if len(local) == len(files):
        return pl.scan_parquet(local, glob=False)

    def rows(
        columns: list[str] | None, predicate: pl.Expr | None, count: int | None, batch_rows: int | None
    ) -> Iterator[pl.DataFrame]:
        for frame in _row_groups(files, schema.names if columns is None else columns):
            part = frame if count is None else frame.head(count)
            yield part if predicate is None else part.filter(predicate)
            if count is not None:
                count -= len(part)
                if count <= 0:
                    return

    return register_io_source(rows, schema=pl.DataFrame(schema.empty_table()).schema)


def _row_groups(files: Sequence[Folder], columns: list[str]) -> Iterator[pl.DataFrame]:
    for file in files:
        with file.open() as opened, pq.ParquetFile(opened, page_checksum_verification=True) as shard:
            for number in range(shard.num_row_groups):
                yield pl.DataFrame(shard.read_row_group(number, columns=columns)).select(columns)
