"""Shards: row groups in plain Parquet files, and the receipt that commits a shard.

Rows lie in a shard in the order in which the teacher met them: longest first, then by row number. A row group is cut
where its signals reach about `ROW_GROUP_BYTES`, from the rows' lengths alone, so that the file does not depend on how
rows were batched.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from shared.dump.codecs import Float16Vectors
from shared.dump.manifest import Manifest
from shared.dump.rowgroup import PLAIN, RowGroup, from_table, shard_schema, to_table
from shared.dump.storage import sha256_of, write_atomically, write_text_atomically
from shared.errors import DumpError

ROW_GROUP_BYTES = 2 * 2**20


class Receipt(BaseModel):
    """What was written: a shard without a receipt that fits it is not there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    tokens: int
    positions: int
    bytes: int
    sha256: str
    row_groups: tuple[int, ...]


def shard_path(folder: Path, index: int) -> Path:
    """Where shard `index` of a dump lies."""
    return folder / "shards" / f"{index:05d}.parquet"


def receipt_path(folder: Path, index: int) -> Path:
    """Where its receipt lies."""
    return folder / "shards" / f"{index:05d}.json"


def read_receipt(folder: Path, index: int) -> Receipt | None:
    """The receipt of a committed shard, or None where the shard is absent, incomplete or of another size."""
    try:
        receipt = Receipt.model_validate_json(receipt_path(folder, index).read_bytes())
        return receipt if shard_path(folder, index).stat().st_size == receipt.bytes else None
    except (FileNotFoundError, ValidationError):
        return None


def row_group_sizes(manifest: Manifest, tokens: Sequence[int], positions: Sequence[int]) -> list[int]:
    """Rows of each row group, from the lengths of the shard's rows in their order in the shard."""
    token_bytes, position_bytes = 4, 4
    for signal in manifest.signals:
        width = sum(column.bytes_per_position for column in signal.columns)
        if isinstance(signal, Float16Vectors):
            token_bytes += width
        else:
            position_bytes += width
    sizes, filled = [0], 0
    for row_tokens, row_positions in zip(tokens, positions, strict=True):
        if filled >= ROW_GROUP_BYTES:
            sizes.append(0)
            filled = 0
        sizes[-1] += 1
        filled += row_tokens * token_bytes + row_positions * position_bytes
    return sizes


def write_shard(folder: Path, index: int, manifest: Manifest, groups: Iterator[RowGroup]) -> Receipt:
    """Write a shard's row groups as they come, then its receipt. Either the shard is committed or it is absent."""
    schema = shard_schema(manifest)
    counts = {"rows": 0, "tokens": 0, "positions": 0}
    row_groups: list[int] = []

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema, **_writer_options(manifest, schema)) as writer:
            for group in groups:
                writer.write_table(to_table(manifest, schema, group), row_group_size=max(1, len(group.rows)))
                row_groups.append(len(group.rows))
                counts["rows"] += len(group.rows)
                counts["tokens"] += len(group.input_ids)
                counts["positions"] += len(group.positions)

    path = shard_path(folder, index)
    # A receipt of a shard that was deleted must not vouch for the new one.
    receipt_path(folder, index).unlink(missing_ok=True)
    write_atomically(path, write)
    receipt = Receipt(**counts, bytes=path.stat().st_size, sha256=sha256_of(path), row_groups=tuple(row_groups))
    write_text_atomically(receipt_path(folder, index), receipt.model_dump_json() + "\n")
    return receipt


def open_shard(folder: Path, index: int) -> pq.ParquetFile:
    """A shard for reading, with page checksums verified. Raises DumpError for a file that is no Parquet (cut short)."""
    path = shard_path(folder, index)
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DumpError(f"{path}: damaged shard ({error}); delete it and run the same dump command again.") from None


def column_sizes(shards: Iterable[pq.FileMetaData]) -> dict[str, int]:
    """Compressed bytes of each column, over some shards."""
    sizes: dict[str, int] = {}
    for metadata in shards:
        for group in range(metadata.num_row_groups):
            for leaf in range(metadata.num_columns):
                column = metadata.row_group(group).column(leaf)
                name = column.path_in_schema.removesuffix(".list.element")
                sizes[name] = sizes.get(name, 0) + column.total_compressed_size
    return sizes


def read_row_group(manifest: Manifest, shard: pq.ParquetFile, group: int, columns: Sequence[str]) -> RowGroup:
    """Row group `group` of an open shard with the codecs' columns named."""
    plain = [name for name in shard.schema_arrow.names if name in PLAIN]
    return from_table(manifest, shard.read_row_group(group, columns=[*plain, *columns], use_threads=False), columns)


def _writer_options(manifest: Manifest, schema: pa.Schema) -> dict[str, Any]:
    """Vectors hardly compress, so they are stored as they are; statistics of lists serve nobody."""
    vectors = {column.name for signal in manifest.vectors.values() for column in signal.columns}
    leaf = {
        name: f"{name}.list.element" if pa.types.is_list(schema.field(name).type) else name for name in schema.names
    }
    return {
        "compression": {leaf[name]: "none" if name in vectors else "zstd" for name in schema.names},
        "use_dictionary": [leaf[name] for name in schema.names if name in PLAIN and name != "row"],
        "write_statistics": ["row"],
        "write_page_checksum": True,
    }
