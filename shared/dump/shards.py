"""Shards: row groups in plain Parquet files, and the receipt that commits a shard.

Rows lie in a shard in the order in which the teacher met them: longest first, then by row number. A row group is cut
where its signals reach about `ROW_GROUP_BYTES`, from the rows' lengths alone, so that the file does not depend on how
rows were batched.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from shared.dump.manifest import Manifest
from shared.dump.parquet.tables import few_values, shard_schema, to_table, training_columns
from shared.dump.parquet.unpack import from_table
from shared.dump.rowgroup import RowGroup
from shared.dump.signals import Per
from shared.errors import DumpError
from shared.storage import Folder, sha256_of

SHARDS = "shards"
# Receipts that are fetched side by side.
READ_AT_ONCE = 32
ROW_GROUP_BYTES = 2 * 2**20
# More than a row group has, unless a single row is that large.
MOST_PAGE_BYTES = 2**26


class Receipt(BaseModel):
    """What was written: a shard without a receipt that fits it is not there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    tokens: int
    positions: int
    bytes: int
    sha256: str
    row_groups: tuple[int, ...]


def shard_path(folder: Folder, index: int) -> Folder:
    """Where shard `index` of a dump lies."""
    return folder / SHARDS / f"{index:05d}.parquet"


def receipt_path(folder: Folder, index: int) -> Folder:
    """Where its receipt lies."""
    return folder / SHARDS / f"{index:05d}.json"


def read_receipt(folder: Folder, index: int) -> Receipt | None:
    """The receipt of a committed shard, or None where the shard is absent, incomplete or of another size."""
    try:
        receipt = Receipt.model_validate_json(receipt_path(folder, index).read_bytes())
        return receipt if shard_path(folder, index).size() == receipt.bytes else None
    except (FileNotFoundError, ValidationError):
        return None


def read_receipts(folder: Folder, shards: int) -> dict[int, Receipt]:
    """The receipts of all committed shards of so many, by index."""
    indices = range(shards)
    if folder.local is not None:
        found = [read_receipt(folder, index) for index in indices]
    else:  # each takes a round trip or two
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            found = list(pool.map(lambda index: read_receipt(folder, index), indices))
    return {index: receipt for index, receipt in zip(indices, found, strict=True) if receipt is not None}


def row_group_sizes(manifest: Manifest, tokens: Sequence[int], positions: Sequence[int]) -> list[int]:
    """Rows of each row group, from the lengths of the shard's rows in their order in the shard."""
    # Those of the ids and of the gold labels.
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
    """Write a shard's row groups as they come, then its receipt. Either the shard is committed or it is absent."""
    facts: dict[str, Any] = {}
    path = shard_path(folder, index)
    # A receipt of a shard that was deleted must not vouch for the new one.
    receipt_path(folder, index).remove()
    path.write(lambda file: facts.update(write_groups(file, manifest, groups)))
    receipt = Receipt(**facts, bytes=path.size(), sha256=sha256_of(path))
    write_receipt(folder, index, receipt)
    return receipt


def write_receipt(folder: Folder, index: int, receipt: Receipt) -> None:
    """Commit a shard that is written."""
    receipt_path(folder, index).write_text(receipt.model_dump_json() + "\n")


def write_groups(sink: IO[bytes], manifest: Manifest, groups: Iterator[RowGroup]) -> dict[str, Any]:
    """Write row groups as one Parquet file; returns the receipt's rows, tokens, positions and row_groups."""
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
    return {"rows": rows, "tokens": tokens, "positions": positions, "row_groups": tuple(row_groups)}


def weigh(manifest: Manifest, groups: Iterator[RowGroup]) -> tuple[dict[str, Any], dict[str, int], int]:
    """Row groups as a shard that is written nowhere: (the receipt's facts, bytes of each column, bytes of it all)."""
    sink = BytesIO()
    facts = write_groups(sink, manifest, groups)
    return facts, column_sizes([pq.ParquetFile(sink).metadata]), sink.getbuffer().nbytes


def open_shard(folder: Folder, index: int) -> pq.ParquetFile:
    """A shard for reading, with page checksums verified. Raises DumpError for a file that is no Parquet (cut short)."""
    path = shard_path(folder, index)
    try:
        return pq.ParquetFile(path.local or path.open(), page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DumpError(f"{path}: damaged shard ({error}); delete it and run the same dump command again.") from None


def column_sizes(shards: Iterable[pq.FileMetaData]) -> dict[str, int]:
    """Compressed bytes of each column, over some shards."""
    sizes: dict[str, int] = {}
    for metadata in shards:
        for group in range(metadata.num_row_groups):
            for leaf in range(metadata.num_columns):
                column = metadata.row_group(group).column(leaf)
                name = column.path_in_schema.split(".list.")[0]
                sizes[name] = sizes.get(name, 0) + column.total_compressed_size
    return sizes


def read_row_group(manifest: Manifest, shard: pq.ParquetFile, group: int, columns: Sequence[str]) -> RowGroup:
    """Row group `group` of an open shard with the codecs' columns named."""
    read = [*training_columns(manifest), *columns]
    return from_table(manifest, shard.read_row_group(group, columns=read, use_threads=False), columns)


def _writer_options(manifest: Manifest, schema: pa.Schema) -> dict[str, Any]:
    """Vectors and states hardly compress, so they are stored as they are; whole numbers in byte planes, which ZSTD
    finds easy, at level 3 (some 2% smaller than at 1 where ids are sampled; beyond it little is won); statistics of
    lists serve nobody. A row group's column is one page, so that it can be read as one array."""
    vectors = {column.name for signal in manifest.signals if not signal.codec.compresses for column in signal.columns}
    # Measured on WNUT-17: ids take 10% fewer bytes in planes than in a dictionary, positions 27%; labels 6% more.
    few = few_values(manifest) & set(schema.names)
    leaves = {name: _leaf(name, schema.field(name).type) for name in schema.names}
    planes = [name for name in schema.names if name not in few and _is_whole(schema.field(name).type)]
    compressed = [] if manifest.compression == "none" else [name for name in schema.names if name not in vectors]
    # Our own byte planes take fewest bytes at level 1 (of top-64: 85.7 a position against 88.8 at 3).
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
