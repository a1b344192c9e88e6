"""Shards as a lazy polars frame."""

from collections.abc import Iterator, Sequence

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from shared.dump.integrity.receipts import Receipt, checked_footer
from shared.dump.shards import open_shard
from shared.storage import Folder


def scan_shards(shards: Sequence[tuple[Folder, Receipt]], schema: pa.Schema) -> pl.LazyFrame:
    """Return the rows of shards with this schema, one file after the other.

    If all files are on this machine, polars itself reads them, in parallel, and skips row groups that a filter
    excludes. Other files are fetched one row group after another: only the columns that are needed, but always all rows
    of a row group.

    Raises:
        DumpError: if a file's footer is not that of its receipt. (For files elsewhere when they are read.)
    """
    local = [file.local for file, _ in shards if file.local is not None]
    if len(local) == len(shards):
        for file, receipt in shards:
            checked_footer(file, receipt)
        return pl.scan_parquet(local, glob=False)

    def rows(
        columns: list[str] | None, predicate: pl.Expr | None, count: int | None, batch_rows: int | None
    ) -> Iterator[pl.DataFrame]:
        for frame in _row_groups(shards, schema.names if columns is None else columns):
            part = frame if count is None else frame.head(count)
            yield part if predicate is None else part.filter(predicate)
            if count is not None:
                count -= len(part)
                if count <= 0:
                    return

    return register_io_source(rows, schema=pl.DataFrame(schema.empty_table()).schema)


def _row_groups(shards: Sequence[tuple[Folder, Receipt]], columns: list[str]) -> Iterator[pl.DataFrame]:
    for file, receipt in shards:
        with open_shard(file, receipt) as shard:
            for number in range(shard.num_row_groups):
                yield pl.DataFrame(shard.read_row_group(number, columns=columns)).select(columns)
