"""Shards: row groups in plain Parquet files.

Rows are in the order in which the teacher processed them: longest first, then by row number. A row group ends when its
signals reach about `ROW_GROUP_BYTES`, computed only from the lengths of its rows, so that the file does not depend on
how rows were batched.
"""

from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared.dump.integrity.footers import ORIGIN_KEY, origin_of
from shared.dump.integrity.receipts import (
    DamagedShard,
    Receipt,
    checked_footer,
    receipt_path,
    refuse_another_shard,
    shard_path,
    write_receipt,
)
from shared.dump.manifest import Manifest
from shared.dump.parquet.checked import open_checked
from shared.dump.parquet.tables import few_values, shard_schema, to_table, training_columns
from shared.dump.parquet.unpack import from_table
from shared.dump.rowgroup import RowGroup
from shared.dump.signals import Per
from shared.storage import Folder

ROW_GROUP_BYTES = 2 * 2**20
# More than the size of a row group, unless a single row is that large.
MOST_PAGE_BYTES = 2**26
# The first bytes of a Parquet file.
_MAGIC = b"PAR1"


def row_group_sizes(manifest: Manifest, tokens: Sequence[int], positions: Sequence[int]) -> list[int]:
    """Return the number of rows of each row group, from the lengths of the shard's rows, in the shard's order."""
    # The bytes of ids and of gold labels.
    bytes_per: dict[Per, int] = {"token": 4, "position": 4, "row": 0}
    for signal in manifest.signals:
        bytes_per[signal.per] += signal.codec.bytes_per_position
    sizes, filled = [0], 0
    for row_tokens, row_positions in zip(tokens, positions, strict=True):
        if filled >= ROW_GROUP_BYTES:
            sizes.append(0)
            filled = 0
        sizes[-1] += 1
        filled += row_tokens * bytes_per["token"] + row_positions * bytes_per["position"] + bytes_per["row"]
    return sizes


def write_shard(folder: Folder, index: int, manifest: Manifest, groups: Iterator[RowGroup]) -> Receipt:
    """Write a shard's row groups one by one, then its receipt. The shard is either committed or absent.

    Raises:
        DumpError: if the file that it would replace belongs to another dump, or is another shard.
    """
    path = shard_path(folder, index)
    refuse_another_shard(path, index, manifest.identity)
    facts: dict[str, Any] = {}
    # The receipt of a deleted shard must not count for the new one.
    receipt_path(folder, index).remove()
    path.write(lambda file: facts.update(write_groups(file, manifest, groups, index)))
    receipt = Receipt.of(path, facts, manifest.identity, index)
    write_receipt(folder, index, receipt)
    return receipt


def write_groups(sink: IO[bytes], manifest: Manifest, groups: Iterator[RowGroup], index: int = 0) -> dict[str, Any]:
    """Write row groups as the Parquet file of shard `index`, and return the receipt's rows, tokens, positions and
    row_groups."""
    schema = shard_schema(manifest)
    rows = tokens = positions = 0
    row_groups = []
    with pq.ParquetWriter(sink, schema, **_writer_options(manifest, schema)) as writer:
        for group in groups:
            writer.write_table(to_table(manifest, schema, group), row_group_size=max(1, len(group.rows)))
            row_groups.append(len(group.rows))
            rows, tokens, positions = (
                rows + len(group.rows),
                tokens + len(group.input_ids),
                positions + len(group.positions),
            )
        if manifest.identity is not None:
            writer.add_key_value_metadata({ORIGIN_KEY: origin_of(manifest.identity, index)})
    return {"rows": rows, "tokens": tokens, "positions": positions, "row_groups": tuple(row_groups)}


def weigh(manifest: Manifest, groups: Iterator[RowGroup]) -> tuple[dict[str, Any], dict[str, int], int]:
    """Write row groups as a shard in memory, and return (the receipt's facts, bytes of each column, bytes in all)."""
    sink = BytesIO()
    facts = write_groups(sink, manifest, groups)
    return facts, column_sizes([pq.ParquetFile(sink).metadata]), sink.getbuffer().nbytes


def open_shard(path: Folder, receipt: Receipt, schema: pa.Schema | None = None) -> pq.ParquetFile:
    """Open a shard for reading; for damaged pages the file's methods raise ValueError. `close(force=True)` closes it.

    The footer is compared with the receipt before Arrow parses it. (Receipts of format versions 1 to 5 do not know the
    footer.)

    Raises:
        DumpError: for a file that is not the one of this receipt, has other columns than `schema`, or is not Parquet,
            for example because it is truncated.
    """
    footer = checked_footer(path, receipt)
    try:
        source = None if footer is None else pa.BufferReader(_MAGIC + footer)
        file = path.open()
        opened = open_checked(file, pq.read_metadata(file if source is None else source))
        groups = map(opened.metadata.row_group, range(opened.num_row_groups))
        rows = tuple(group.num_rows for group in groups)
        found = opened.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged_shard(path, str(error)) from None
    if rows != receipt.row_groups:
        raise damaged_shard(path, "the rows of its row groups are not those of its receipt")
    if schema is not None and not found.equals(schema):
        raise damaged_shard(path, "its columns are not those of the manifest")
    return opened


def damaged_shard(path: Folder, what: str) -> DamagedShard:
    """Return the error for a damaged shard."""
    return DamagedShard(f"{path}: damaged shard ({what}); delete it and run the same dump command again.")


def column_sizes(shards: Iterable[pq.FileMetaData]) -> dict[str, int]:
    """Return the compressed bytes of each column, summed over shards."""
    sizes: dict[str, int] = {}
    for metadata in shards:
        for group in range(metadata.num_row_groups):
            for leaf in range(metadata.num_columns):
                column = metadata.row_group(group).column(leaf)
                name = column.path_in_schema.split(".list.")[0]
                sizes[name] = sizes.get(name, 0) + column.total_compressed_size
    return sizes


def read_row_group(manifest: Manifest, shard: pq.ParquetFile, group: int, columns: Sequence[str]) -> RowGroup:
    """Read row group `group` of an open shard with these columns of codecs."""
    read = [*training_columns(manifest), *columns]
    return from_table(manifest, shard.read_row_group(group, columns=read, use_threads=False), columns)


def _writer_options(manifest: Manifest, schema: pa.Schema) -> dict[str, Any]:
    """Return the options of the Parquet writer.

    Vectors and states hardly compress, so they are stored without compression. Integers are stored in byte planes,
    which ZSTD compresses well, at level 3 (about 2% smaller than at level 1 for sampled ids; higher levels gain
    little). There are no statistics of list columns, because nothing uses them. Each column of a row group is one page,
    so that it can be read as one array.
    """
    vectors = {column.name for signal in manifest.signals if not signal.codec.compresses for column in signal.columns}
    # Measured on WNUT-17: ids take 10% fewer bytes in planes than in a dictionary, positions 27%; labels 6% more.
    few = few_values(manifest) & set(schema.names)
    leaves = {name: _leaf(name, schema.field(name).type) for name in schema.names}
    planes = [name for name in schema.names if name not in few and _is_whole(schema.field(name).type)]
    compressed = [] if manifest.compression == "none" else [name for name in schema.names if name not in vectors]
    # The byte planes of `codecs/coding/planes.py` are smallest at level 1 (top-64: 85.7 bytes per position, and 88.8 at
    # level 3).
    split = {column.name for signal in manifest.signals for column in signal.columns if column.dtype == "uint8"}
    levels = {leaves[name]: 1 if name in split else 3 for name in compressed} if manifest.compression == "zstd" else {}
    return {
        "compression": {leaves[name]: manifest.compression if name in compressed else "none" for name in schema.names},
        "compression_level": levels or None,
        "use_dictionary": [leaves[name] for name in sorted(few)],
        "column_encoding": {leaves[name]: "BYTE_STREAM_SPLIT" for name in planes},
        "data_page_size": MOST_PAGE_BYTES,
        "write_statistics": ["row"],
        "write_page_checksum": True,
    }


def _leaf(name: str, type_: pa.DataType) -> str:
    return _leaf(f"{name}.list.element", type_.value_type) if pa.types.is_list(type_) else name


def _is_whole(type_: pa.DataType) -> bool:
    return _is_whole(type_.value_type) if pa.types.is_list(type_) else pa.types.is_integer(type_)
