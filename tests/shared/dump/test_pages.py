"""Pages read without Arrow give what Arrow gives, are checked, and are left to Arrow where they are of another kind."""

import os
from io import FileIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.dump.codecs import Column, Int8Vectors, Sparse, TopK
from shared.dump.integrity.receipts import Receipt, shard_path
from shared.dump.layouts import LAYOUTS
from shared.dump.manifest import Compression, Manifest
from shared.dump.parquet.headers import data_pages
from shared.dump.parquet.pages import GroupPages
from shared.dump.parquet.unpack import Flat, columns_of, flat_columns
from shared.dump.rowgroup import RowGroup, offsets_per
from shared.dump.shards import open_shard, write_shard
from shared.dump.signals import Signal
from shared.storage import Folder

CODECS = (
    Sparse(name="d", selection=TopK(k=5), vocabulary=70_000, levels=999, temperatures=(2.0, 4.0), in_planes=True),
    Sparse(name="one", selection=TopK(k=1), vocabulary=9, temperatures=(2.0,), entropy=True, in_planes=True),
)
SIGNALS = (
    *(Signal(site=codec.name, per="position", codec=codec) for codec in CODECS),
    Signal(site="hidden", layer=1, per="token", codec=Int8Vectors(name="hidden.1", width=6)),
    Signal(site="pooled", per="row", codec=Int8Vectors(name="pooled", width=5)),
)
LENGTHS = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 300)), min_size=1, max_size=12)


def manifest_of(compression: str) -> Manifest:
    facts: dict[str, Any] = {"format_version": 4, "task": "none", "layout": LAYOUTS["listed"], "labelled": False}
    return Manifest.model_construct(**facts, pairs=True, signals=SIGNALS, compression=compression)


def drawn(manifest: Manifest, lengths: list[int], seed: int) -> RowGroup:
    """Rows with these numbers of tokens; every token except the first is a recorded position."""
    draw = np.random.default_rng(seed)

    def values(column: Column, count: int) -> Any:
        shape = count if column.width == 1 else (count, column.width)
        return draw.integers(0, 100, shape).astype(column.dtype)

    recorded = [max(0, length - 1) for length in lengths]
    tokens, positions = (np.concatenate([[0], np.cumsum(each)]) for each in (lengths, recorded))
    return RowGroup(
        rows=draw.permutation(len(lengths)),
        token_offsets=tokens,
        input_ids=draw.integers(0, 2**31, tokens[-1], dtype=np.int32),
        token_type_ids=draw.integers(0, 2, tokens[-1], dtype=np.uint8),
        position_offsets=positions,
        positions=draw.integers(0, 300, positions[-1], dtype=np.int32),
        labels=np.zeros(positions[-1], np.int32),
        columns={
            column.name: values(column, int(offsets_per(signal.per, tokens, positions)[-1]))
            for signal in manifest.signals
            for column in signal.columns
        },
    )


def written(folder: Path, compression: str, groups: list[list[int]]) -> tuple[Manifest, list[RowGroup], Receipt]:
    manifest = manifest_of(compression)
    rows = [drawn(manifest, lengths, seed) for seed, lengths in enumerate(groups)]
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    return manifest, rows, write_shard(Folder.of(folder), 0, manifest, iter(rows))


def same(one: Flat, other: Flat) -> bool:
    if (one.offsets is None) != (other.offsets is None):
        return False
    if one.offsets is not None and other.offsets is not None and one.offsets.tolist() != other.offsets.tolist():
        return False
    return one.numbers().dtype == other.numbers().dtype and np.array_equal(one.numbers(), other.numbers())


@pytest.mark.parametrize("compression", get_args(Compression))
@given(groups=st.lists(LENGTHS, min_size=1, max_size=3), page_bytes=st.sampled_from([2**26, 700]))
@settings(max_examples=25)
def test_pages_hold_what_arrow_reads_in_them(
    compression: str, groups: list[list[int]], page_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rows of any length, none among them; a page a column, or many that begin within rows; copied or mapped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.dump.shards.MOST_PAGE_BYTES", page_bytes)
        folder = tmp_path_factory.mktemp("dump")
        manifest, _, receipt = written(folder, compression, groups)
        path = shard_path(Folder.of(folder), 0)
        file, raw = open_shard(path, receipt), path.open()
        for number in range(file.num_row_groups):
            pages = GroupPages(raw, file.metadata, number)
            wanted = flat_columns(manifest, file.read_row_group(number))
            for name, column in columns_of(manifest).items():
                found = pages.read(column)
                # Token types are few values, which a dictionary holds.
                if name == "token_type_ids":
                    assert found is None
                else:
                    assert found is not None
                    assert same(found, wanted[name]), name


def test_most_columns_of_a_compressed_dump_are_smaller(tmp_path: Path) -> None:
    sizes = {}
    for compression in get_args(Compression):
        written(tmp_path / compression, compression, [[200] * 20])
        metadata = pq.ParquetFile(shard_path(Folder.of(tmp_path / compression), 0).local).metadata
        columns = [metadata.row_group(0).column(leaf) for leaf in range(metadata.num_columns)]
        sizes[compression] = sum(column.total_compressed_size for column in columns)
        of_vectors = {column.compression for column in columns if column.path_in_schema.startswith("hidden")}
        assert of_vectors == {"UNCOMPRESSED"}
    assert sizes["zstd"] < 0.95 * sizes["lz4"] < 0.95 * sizes["none"]


@pytest.mark.parametrize("compression", get_args(Compression))
def test_a_flipped_bit_of_a_page_is_never_read_as_another_number(compression: str, tmp_path: Path) -> None:
    """Every byte of two columns' pages, heads included, one bit each: refused, or the same numbers (a head may say the
    same in other words)."""
    manifest, _, _ = written(tmp_path, compression, [[9, 0, 4]])
    path = tmp_path / "shards" / "00000.parquet"
    metadata, whole = pq.ParquetFile(path).metadata, path.read_bytes()
    refused = 0
    for name in ("input_ids", "d.entries_1"):
        column = columns_of(manifest)[name]
        with FileIO(path) as raw:
            wanted = GroupPages(raw, metadata, 0).read(column)
        leaf = next(leaf for leaf in range(metadata.num_columns) if metadata.schema.column(leaf).path.startswith(name))
        chunk = metadata.row_group(0).column(leaf)
        for at in range(chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            try:
                with FileIO(path) as raw:
                    found = GroupPages(raw, metadata, 0).read(column)
            except ValueError:
                refused += 1
            else:
                assert wanted is not None
                assert found is not None
                assert same(found, wanted)
    assert refused > 100


def test_what_was_read_stays_though_the_file_changes(tmp_path: Path) -> None:
    """A memory map would show the zeros, and end the process by a signal when the file has become shorter."""
    manifest, groups, _ = written(tmp_path, "none", [[20_000]])
    path = tmp_path / "shards" / "00000.parquet"
    with FileIO(path) as raw:
        pages = GroupPages(raw, pq.ParquetFile(path).metadata, 0)
        found = pages.read(columns_of(manifest)["d.entries_1"])
    assert found is not None
    size = path.stat().st_size
    with open(path, "rb+") as file:
        file.write(bytes(size))
    assert np.array_equal(found.numbers(), groups[0].columns["d.entries_1"])
    os.truncate(path, 0)
    assert np.array_equal(found.numbers(), groups[0].columns["d.entries_1"])


def test_bytes_that_claim_to_be_a_huge_header_are_refused_at_once(tmp_path: Path) -> None:
    """Integers and structs without an end, in the place of a page."""
    _, _, _ = written(tmp_path, "none", [[20_000]])
    metadata = pq.ParquetFile(tmp_path / "shards" / "00000.parquet").metadata
    leaf = next(leaf for leaf in range(metadata.num_columns) if metadata.schema.column(leaf).path.startswith("input"))
    chunk = metadata.row_group(0).column(leaf)
    for pattern in (b"\x15" + b"\xff" * 2**21, b"\x1c" * 2**16, b"", bytes(100), b"\x18\xff\xff\xff\xff\x7f"):
        with pytest.raises(ValueError, match=r"header"):
            data_pages(chunk, np.frombuffer(pattern, np.uint8))


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (pa.array([[1, 2], None, [3]], pa.list_(pa.int32())), {}),
        (pa.array([[[1], [2, 3]], [[]]], pa.list_(pa.list_(pa.int32()))), {}),
        (pa.array([1, 1, 1], pa.int32()), {"use_dictionary": True}),
        (pa.array([1, None, 1], pa.int32()), {}),
        (pa.array([1, 2, 3], pa.int32()), {"compression": "gzip"}),
        (pa.array(["a", "b"]), {}),
    ],
    ids=["missing lists", "lists in lists", "dictionary", "missing numbers", "gzip", "text"],
)
def test_other_kinds_of_columns_are_left_to_arrow(values: pa.Array, options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    pq.write_table(pa.table({"x": values}), path, **({"use_dictionary": False} | options), write_page_checksum=True)
    with FileIO(path) as raw:
        assert GroupPages(raw, pq.ParquetFile(path).metadata, 0).read(Column("x", "int32")) is None
        assert GroupPages(raw, pq.ParquetFile(path).metadata, 0).read(Column("y", "int32")) is None
