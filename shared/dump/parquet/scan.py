"""Shards as a lazy polars frame, which checks whatever it reads."""

from collections.abc import Callable, Iterator, Sequence

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.io.plugins import register_io_source

from shared.dump.integrity.receipts import Receipt
from shared.dump.parquet.unpack import check_row_numbers
from shared.dump.shards import damaged_shard, open_shard
from shared.storage import Folder

# Raises ValueError for columns of a row group whose values make no sense.
Check = Callable[[pa.Table], None]

# A shard: its file, its receipt, and the numbers of its rows in the column `row`.
Shard = tuple[Folder, Receipt, range]


def scan_shards(shards: Sequence[Shard], schema: pa.Schema, check: Check) -> pl.LazyFrame:
    """Return the rows of shards with this schema, one file after the other.

    Row groups are read one after the other, and only the columns that are needed. A filter is tried on its own columns
    first, and the others are read only of row groups in which it holds somewhere; if it looks at row numbers alone,
    files without such rows are not opened. Whenever a page is read, it is checked. That takes no longer than polars'
    own reader, which checks nothing: ids and log-probabilities of 300,000 positions take 0.45 s of processor time with
    either, raw columns 0.04 s, and 0.08 s with polars' reader (on two cores; polars reads several files at once).

    Raises (when the frame is collected):
        DumpError: for damage, with the name of the file.
    """

    def rows(
        columns: list[str] | None, predicate: pl.Expr | None, count: int | None, batch_rows: int | None
    ) -> Iterator[pl.DataFrame]:
        wanted = schema.names if columns is None else columns
        # The first `count` rows are those before filtering.
        for frame in _row_groups(shards, schema, check, wanted, predicate if count is None else None):
            part = frame if count is None else frame.head(count)
            yield part if predicate is None else part.filter(predicate)
            if count is not None:
                count -= len(part)
                if count <= 0:
                    return

    return register_io_source(rows, schema=pl.DataFrame(schema.empty_table()).schema)


def _row_groups(
    shards: Sequence[Shard], schema: pa.Schema, check: Check, columns: list[str], predicate: pl.Expr | None
) -> Iterator[pl.DataFrame]:
    """Yield the columns of row groups, except those without any row for which the predicate holds."""
    asked = [] if predicate is None else predicate.meta.root_names()
    for path, receipt, rows in shards:
        numbers = pl.DataFrame({"row": pl.int_range(rows.start, rows.stop, dtype=pl.Int64, eager=True)})
        if asked == ["row"] and not _holds(predicate, numbers):
            continue
        shard = open_shard(path, receipt, schema)
        try:
            for number, count in enumerate(receipt.row_groups):
                if not asked or _holds(predicate, _frame(shard, number, asked, count, check)):
                    frame = _frame(shard, number, columns, count, check)
                    if "row" in columns:
                        check_row_numbers(frame["row"].to_numpy(), rows)
                    yield frame
        except (pa.ArrowException, OSError, ValueError) as error:
            raise damaged_shard(path, str(error)) from None
        finally:
            shard.close(force=True)


def _frame(shard: pq.ParquetFile, number: int, columns: list[str], rows: int, check: Check) -> pl.DataFrame:
    """Return columns of a row group, of which the receipt knows the number of rows. Raises ValueError for damage."""
    table = shard.read_row_group(number, columns=columns)
    if columns and len(table) != rows:
        raise ValueError(f"row group {number} has {len(table)} rows, but the receipt says {rows}")
    check(table)
    return pl.DataFrame(table).select(columns)


def _holds(predicate: pl.Expr | None, frame: pl.DataFrame) -> bool:
    """Whether a predicate holds for any row."""
    return predicate is None or len(frame.filter(predicate)) > 0
