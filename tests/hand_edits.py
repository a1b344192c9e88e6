"""Deliberate edits of a dump by hand, signed so that no checksum stands before what a test is about."""

import json
from collections.abc import Callable
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared.dump.integrity.checksums import write_checksums
from shared.dump.integrity.footers import ORIGIN_KEY, origin_of
from shared.dump.integrity.receipts import Receipt, read_receipt, shard_path, write_receipt
from shared.dump.manifest import read_manifest
from shared.dump.parquet.tables import shard_schema
from shared.dump.shards import _writer_options, open_shard
from shared.storage import Folder, Place


def edit_manifest(dump: Place, **changes: Any) -> None:
    """Change entries of a dump's manifest."""
    path = Folder.of(dump) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    sign(dump)


def sign(dump: Place) -> None:
    """Write the checksums of a dump's files as they are now, whether they make sense or not."""
    write_checksums(Folder.of(dump), (Folder.of(dump) / "manifest.json").read_text())


def edit_shard(dump: Place, index: int, column: str, change: Callable[[list[Any]], object]) -> None:
    """Change the values of a column of a shard's first row group, given as a list with an item for each row, and write
    the shard and its receipt so that every checksum fits."""
    folder = Folder.of(dump)
    manifest, path = read_manifest(folder), shard_path(folder, index)
    receipt = read_receipt(folder, index, manifest.identity)
    assert receipt is not None
    file, schema = open_shard(path, receipt), shard_schema(manifest)
    tables = [file.read_row_group(number) for number in range(file.num_row_groups)]
    values = tables[0][column].to_pylist()
    change(values)
    field = schema.field(column)
    tables[0] = tables[0].set_column(schema.get_field_index(column), field, pa.array(values, field.type))

    def write(sink: IO[bytes]) -> None:
        with pq.ParquetWriter(sink, schema, **_writer_options(manifest, schema)) as writer:
            for table in tables:
                writer.write_table(table.cast(schema), row_group_size=len(table))
            if manifest.identity is not None:
                writer.add_key_value_metadata({ORIGIN_KEY: origin_of(manifest.identity, index)})

    path.write(write)
    facts = receipt.model_dump(include={"rows", "tokens", "positions", "row_groups"})
    write_receipt(folder, index, Receipt.of(path, facts, manifest.identity, index))
