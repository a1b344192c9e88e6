"""Reading packed batches of codes: our loader against `datasets` (streaming Parquet) and litdata.

    pip install 'lectern[bench]'

installs both; a missing one is left out with a message. The codes are those of reader.py: top-64 of 152,000 ids,
next-token labels, and ids and lengths with the skewed distributions of text. Our side is a dump with checksums, read in
the shuffled order of training. The others read the same entries as int32 in the order in which they were written, which
is fastest for them. All make batches of 32 rows as flat tensors; a first epoch, which is not measured, checks that
their sums agree.

datasets, numpy: a list of entries for each position, the usual way to store them (Snappy, our row groups).
datasets, numpy, flat: the same, with one list of all entries per row.
datasets, arrow, flat: Arrow tables, whose buffers are taken directly: its fastest way.
litdata, zstd: chunks of 64 MB, one numpy array per row for each field, compressed like the dump.
litdata: not compressed, so nothing is decoded; litdata never checks. Our dump is not compressed here either.

Medians of interleaved epochs on one thread, with the files in the page cache: thousand tokens per CPU second of this
process (all threads), and per second. With QUICK=1: fewer rows and runs. Writes benchmarks/out/loaders.json.
"""

import importlib
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import reader
import torch
from numpy.typing import NDArray
from reader import BATCH_ROWS, LARGE, SHARDS, TOP, Drawn
from report import Figure, write_figures
from settings import OUT, sized
from torch import Tensor

from shared.dump.codecs import Sparse, TopK
from shared.dump.rowgroup import RowGroup
from shared.memory import keep_freed_memory

WORK = OUT / "loaders"
RUNS = sized(5, quick=2, tiny=1)
CHUNK_BYTES = "64MB"
OURS, OURS_PLAIN = "dump, zstd", "dump, not compressed"
# Other side -> (our side, target of the ratio).
TARGETS = {
    "datasets, numpy": (OURS, 8.0),
    "datasets, numpy, flat": (OURS, 1.0),
    "datasets, arrow, flat": (OURS, 1.0),
    "litdata, zstd": (OURS, 2.0),
    "litdata": (OURS_PLAIN, 2.0),
}

# The fields of one row.
Fields = dict[str, NDArray[Any]]
Batches = Iterator[list[Tensor]]


def main() -> None:
    """Write the three stores, measure, print, write."""
    torch.set_num_threads(1)
    keep_freed_memory()
    reader.WORK = WORK  # where its drawn dumps go
    shutil.rmtree(WORK, ignore_errors=True)
    codec = Sparse(name="distribution", selection=TopK(k=TOP), vocabulary=LARGE, in_planes=True)
    drawn = Drawn(codec, "top-64", SHARDS, np.random.default_rng(0))
    plain = Drawn(codec, "top-64-none", SHARDS, np.random.default_rng(0), "none")
    groups = [fields_of(group) for group in drawn.mapped]
    makers: dict[str, Callable[[], Batches]] = {OURS: our_epochs(drawn), OURS_PLAIN: our_epochs(plain)}
    if is_there("datasets"):
        nested, flat = (parquet(groups, drawn.folder / f"{nested}.parquet", nested) for nested in (True, False))
        makers["datasets, numpy"] = lambda: by_datasets(nested, "numpy", numpy_batch)
        makers["datasets, numpy, flat"] = lambda: by_datasets(flat, "numpy", numpy_batch)
        makers["datasets, arrow, flat"] = lambda: by_datasets(flat, "arrow", arrow_batch)
    if is_there("litdata"):
        zstd, raw = (litdata_chunks(groups, drawn.folder / f"litdata-{how}", how) for how in ("zstd", None))
        makers["litdata, zstd"] = lambda: by_litdata(zstd)
        makers["litdata"] = lambda: by_litdata(raw)
    check(makers, 3 + len(split_columns(drawn.mapped[0])[0]))  # token ids, lengths and labels before them
    figures = compared(measured(makers))
    if figures:
        write_figures("loaders", figures)
    shutil.rmtree(WORK)


def is_there(package: str) -> bool:
    """Whether the package can be imported; if not, print that it is left out."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        print(f"not compared with {package}: {error}. pip install 'lectern[bench]' gets it.")
        return False
    return True


def fields_of(group: RowGroup) -> list[Fields]:
    """Yield the fields of each row: token ids [T], columns [P] and entries [P, k], joined from their planes.

    Labels are the next tokens.
    """
    single, planes = split_columns(group)
    entries = sum(plane.astype(np.int32) << 8 * number for number, plane in enumerate(planes))
    tokens, positions = group.token_offsets, group.position_offsets
    return [
        {"input_ids": group.input_ids[tokens[row] : tokens[row + 1]]}
        | {name: values[positions[row] : positions[row + 1]] for name, values in single.items()}
        | {"entries": np.asarray(entries)[positions[row] : positions[row + 1]]}
        for row in range(len(group.rows))
    ]


def split_columns(rows: RowGroup) -> tuple[Fields, list[NDArray[Any]]]:
    """(the codec's columns with one number per position, the planes with one number per kept id)."""
    columns = {name: np.asarray(column) for name, column in rows.columns.items()}
    single = {name: column for name, column in columns.items() if column.ndim == 1}
    return single, [column for name, column in columns.items() if name not in single]


def our_epochs(drawn: Drawn) -> Callable[[], Batches]:
    """One stream for all epochs, as in training."""
    batches = drawn.batches(0)
    stream, epoch = batches.gathered(), int(batches.order.batches(1))
    return lambda: (our_batch(rows) for rows in islice(stream, epoch))


def our_batch(rows: RowGroup) -> list[Tensor]:
    """The tensors that all sides make: token ids, lengths of rows, labels, other columns, and the entries in planes."""
    single, planes = split_columns(rows)
    return tensors([rows.input_ids, np.diff(rows.token_offsets), rows.labels, *single.values(), *planes])


def by_datasets(file: Path, kind: str, batch: Callable[[Any], list[Tensor]]) -> Batches:
    """An epoch of `datasets`, streaming."""
    import datasets

    rows = datasets.load_dataset("parquet", data_files=str(file), split="train", streaming=True)
    return (batch(part) for part in rows.with_format(kind).iter(BATCH_ROWS))


def numpy_batch(part: dict[str, Any]) -> list[Tensor]:
    """The tensors of a batch, from one array per row."""
    ids, *columns = part.values()
    lengths = np.asarray([len(row) for row in ids])
    labels = np.concatenate([row[1:] for row in ids])
    return tensors([np.concatenate(ids), lengths, labels, *(flattened(column) for column in columns)])


def flattened(column: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """All numbers of a column, whose rows are arrays of numbers or of one array per position."""
    flat = np.concatenate(column)
    return np.concatenate(flat) if flat.dtype == object else flat.reshape(-1)


def arrow_batch(part: pa.Table) -> list[Tensor]:
    """The tensors of a batch, from the buffers of an Arrow table."""
    ids, *columns = (column.combine_chunks() for column in part.columns)
    lengths = ids.value_lengths().to_numpy()
    flat = ids.flatten().to_numpy()
    is_label = np.ones(len(flat), bool)
    is_label[np.cumsum(lengths) - lengths] = False
    return tensors([flat, lengths, flat[is_label], *(column.flatten().to_numpy() for column in columns)])


def by_litdata(folder: Path) -> Batches:
    """An epoch of litdata."""
    import litdata

    # Not its own iterator, which starts again whenever it is iterated over.
    rows = (row for row in litdata.StreamingDataset(str(folder), shuffle=False, drop_last=False))
    while part := list(islice(rows, BATCH_ROWS)):
        yield numpy_batch({name: [row[name] for row in part] for name in part[0]})


def parquet(groups: list[list[Fields]], file: Path, nested: bool) -> Path:
    """Write one Parquet file: for each field a list per row, of numbers or, if `nested`, of a list per position."""
    with pq.ParquetWriter(file, arrow_table(groups[0], nested).schema) as writer:
        for group in groups:
            writer.write_table(arrow_table(group, nested))
    return file


def arrow_table(rows: list[Fields], nested: bool) -> pa.Table:
    """Rows as a table of list columns."""
    columns = {}
    for name in rows[0]:
        joined = np.concatenate([row[name] for row in rows])
        values, each = pa.array(joined.reshape(-1)), joined.size // len(joined)
        if nested and joined.ndim > 1:
            values, each = lists(values, np.full(len(joined), each)), 1
        columns[name] = lists(values, np.asarray([len(row[name]) * each for row in rows]))
    return pa.table(columns)


def lists(values: pa.Array, counts: NDArray[Any]) -> pa.Array:
    """The values in lists of these lengths."""
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32()), values)


def litdata_chunks(groups: list[list[Fields]], folder: Path, compression: str | None) -> Path:
    """Write the same rows as chunks of litdata."""
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_bytes=CHUNK_BYTES, compression=compression)
    for index, row in enumerate(row for group in groups for row in group):
        cache[index] = {name: np.array(values.reshape(-1)) for name, values in row.items()}
    cache.done()
    cache.merge()
    return folder


def tensors(arrays: list[NDArray[Any]]) -> list[Tensor]:
    """The arrays as tensors, without a copy unless the memory is read-only."""
    return [torch.from_numpy(array if array.flags.writeable else array.copy()) for array in arrays]


def check(makers: dict[str, Callable[[], Batches]], columns: int) -> None:
    """Check that an epoch of each side has the same number of batches and the same sums of columns and entries."""
    found = {}
    for side, epoch in makers.items():
        sums = [[int(tensor.sum()) for tensor in batch] for batch in epoch()]
        totals = [sum(each) for each in zip(*sums, strict=True)]
        others, planes = totals[:columns], totals[columns:]
        found[side] = (len(sums), *others, sum(plane << 8 * number for number, plane in enumerate(planes)))
        assert found[side] == found[OURS], f"{side} reads other numbers: {found[side]}, not {found[OURS]}"


def measured(makers: dict[str, Callable[[], Batches]]) -> dict[str, tuple[float, ...]]:
    """Median thousand tokens per CPU second and per second of each side."""
    rates: dict[str, list[tuple[float, float]]] = {side: [] for side in makers}
    for _ in range(RUNS):
        for side, epoch in makers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = sum(len(batch[0]) for batch in epoch())
            spent = time.process_time() - cpu, time.perf_counter() - wall
            rates[side].append((tokens / spent[0] / 1000, tokens / spent[1] / 1000))
    return {side: tuple(statistics.median(clock) for clock in zip(*each, strict=True)) for side, each in rates.items()}


def compared(rates: dict[str, tuple[float, ...]]) -> list[Figure]:
    """The figures of our side against each installed package."""
    return [
        Figure(
            figure=f"{ours} / {side}, by {clock} time",
            value=rates[ours][index],
            baseline=rates[side][index],
            target=target,
            higher_is_better=True,
            unit="thousand tokens/s",
            runs=RUNS,
        )
        for side, (ours, target) in TARGETS.items()
        if side in rates
        for index, clock in enumerate(("CPU", "wall"))
    ]


if __name__ == "__main__":
    main()
