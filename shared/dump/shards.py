"""Shards: row groups of flat tensors <-> plain Parquet, and the receipt that commits a shard.

Rows lie in a shard in the order in which the teacher met them: longest first, then by row number. A row group is cut
where its signals reach about `ROW_GROUP_BYTES`, from the rows' lengths alone, so that the file does not depend on how
rows were batched.

Shapes: R rows, T tokens of all rows, P recorded positions of all rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from shared.dump.codecs import Column, Float16Vectors
from shared.dump.manifest import Manifest
from shared.dump.storage import sha256_of, write_atomically, write_text_atomically
from shared.errors import DumpError

ROW_GROUP_BYTES = 2 * 2**20
MISSING = -100

Offsets = NDArray[np.int64]


@dataclass
class RowGroup:
    """Some rows, flat.

    Attributes:
        rows: int64 [R], row numbers of the corpus.
        token_offsets: int64 [R + 1]; row r's tokens are input_ids[token_offsets[r]:token_offsets[r + 1]].
        input_ids: int32 [T].
        token_type_ids: uint8 [T], or None where rows are no pairs.
        position_offsets: int64 [R + 1], likewise into the recorded positions.
        positions: int32 [P], indices into the row's own tokens.
        labels: int32 [P], gold labels, -100 where missing.
        columns: the codecs' columns, [P, width] for a distribution and [T, width] for vectors ([P] or [T] at width 1).
    """

    rows: NDArray[np.int64]
    token_offsets: Offsets
    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.uint8] | None
    position_offsets: Offsets
    positions: NDArray[np.int32]
    labels: NDArray[np.int32]
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)


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
                writer.write_table(_to_table(manifest, schema, group), row_group_size=max(1, len(group.rows)))
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
    """Row group `group` of an open shard with the codecs' columns named, flat and without a Python object a row."""
    plain = [name for name in shard.schema_arrow.names if name in _PLAIN]
    table = shard.read_row_group(group, columns=[*plain, *columns], use_threads=False)
    arrays = {name: _contiguous(table[name]) for name in table.column_names}
    token_offsets, input_ids = _flat(arrays["input_ids"], "int32", 1)
    codec_columns = {column.name: column for signal in manifest.signals for column in signal.columns}
    result = RowGroup(
        rows=arrays["row"].to_numpy(),
        token_offsets=token_offsets,
        input_ids=input_ids,
        token_type_ids=_flat(arrays["token_type_ids"], "uint8", 1)[1] if manifest.pairs else None,
        position_offsets=token_offsets,
        positions=np.zeros(0, np.int32),
        labels=np.zeros(0, np.int32),
        columns={
            name: _flat(arrays[name], codec_columns[name].dtype, codec_columns[name].width)[1] for name in columns
        },
    )
    _RECORDED[manifest.recorded](manifest, result, arrays)
    return result


# Columns that are no codec's; which of them a dump has, its manifest says.
_PLAIN = ("row", "input_ids", "token_type_ids", "positions", "labels", "label")


def _recorded_next_token(manifest: Manifest, group: RowGroup, arrays: dict[str, Any]) -> None:
    lengths = np.maximum(np.diff(group.token_offsets) - 1, 0)
    group.position_offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(group.position_offsets[-1]) - np.repeat(group.position_offsets[:-1], lengths)
    group.positions = within.astype(np.int32)
    group.labels = group.input_ids[np.repeat(group.token_offsets[:-1], lengths) + within + 1]


def _recorded_listed(manifest: Manifest, group: RowGroup, arrays: dict[str, Any]) -> None:
    group.position_offsets, group.positions = _flat(arrays["positions"], "int32", 1)
    if manifest.gold == "listed":
        labels = arrays["labels"].flatten().fill_null(MISSING)
        group.labels = labels.to_numpy()
    else:
        group.labels = np.full(len(group.positions), MISSING, np.int32)


def _recorded_row(manifest: Manifest, group: RowGroup, arrays: dict[str, Any]) -> None:
    count = len(group.rows)
    group.position_offsets = np.arange(count + 1, dtype=np.int64)
    group.positions = np.zeros(count, np.int32)
    missing = np.full(count, MISSING, np.int32)
    group.labels = arrays["label"].fill_null(MISSING).to_numpy() if manifest.gold == "row" else missing


def _recorded_none(manifest: Manifest, group: RowGroup, arrays: dict[str, Any]) -> None:
    group.position_offsets = np.zeros(len(group.rows) + 1, np.int64)


_RECORDED = {
    "next-token": _recorded_next_token,
    "listed": _recorded_listed,
    "row": _recorded_row,
    "none": _recorded_none,
}


def shard_schema(manifest: Manifest) -> pa.Schema:
    """The Arrow schema of every shard, each field with a sentence about what it holds."""

    def numbers(type_: pa.DataType, nullable: bool = False) -> pa.DataType:
        return pa.list_(pa.field("element", type_, nullable=nullable))

    fields = [
        ("row", pa.int64(), "row number in the corpus, from 0"),
        ("input_ids", numbers(pa.int32()), "token ids as the teacher saw them"),
    ]
    if manifest.pairs:
        fields.append(("token_type_ids", numbers(pa.uint8()), "0 for the first text of a pair, 1 for the second"))
    if manifest.recorded == "listed":
        fields.append(("positions", numbers(pa.int32()), "indices into input_ids at which a distribution is recorded"))
    if manifest.gold == "listed":
        fields.append(("labels", numbers(pa.int32(), nullable=True), "gold label at each of `positions`, or null"))
    if manifest.gold == "row":
        fields.append(("label", pa.int32(), "gold label of the row, or null"))
    where = {
        "next-token": "one for each token but the last: the distribution after token t is that of token t + 1",
        "listed": "one for each of `positions`",
        "row": "one for the row",
        "none": "",
    }[manifest.recorded]
    for signal in manifest.signals:
        place = "one for each token" if isinstance(signal, Float16Vectors) else where
        fields += [
            (column.name, numbers(_arrow_type(column)), f"{column.dtype} x {column.width}, {place}")
            for column in signal.columns
        ]
    return pa.schema(
        [
            pa.field(name, type_, nullable=name in ("label",), metadata={"description": about})
            for name, type_, about in fields
        ],
        metadata={"lectern": manifest.model_dump_json(include={"format_version", "task", "recorded", "signals"})},
    )


def _arrow_type(column: Column) -> pa.DataType:
    if column.width == 1:
        return pa.from_numpy_dtype(np.dtype(column.dtype))
    return pa.binary(column.bytes_per_position)


def _writer_options(manifest: Manifest, schema: pa.Schema) -> dict[str, Any]:
    """Vectors hardly compress, so they are stored as they are; statistics of lists serve nobody."""
    vectors = {column.name for signal in manifest.vectors.values() for column in signal.columns}
    leaf = {
        name: f"{name}.list.element" if pa.types.is_list(schema.field(name).type) else name for name in schema.names
    }
    return {
        "compression": {leaf[name]: "none" if name in vectors else "zstd" for name in schema.names},
        "use_dictionary": [leaf[name] for name in schema.names if name in _PLAIN and name != "row"],
        "write_statistics": ["row"],
        "write_page_checksum": True,
    }


def _to_table(manifest: Manifest, schema: pa.Schema, group: RowGroup) -> pa.Table:
    def lists(name: str, offsets: Offsets, values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, type=schema.field(name).type)

    tokens, positions = group.token_offsets, group.position_offsets
    arrays: dict[str, pa.Array] = {
        "row": pa.array(group.rows),
        "input_ids": lists("input_ids", tokens, pa.array(group.input_ids)),
    }
    if group.token_type_ids is not None:
        arrays["token_type_ids"] = lists("token_type_ids", tokens, pa.array(group.token_type_ids))
    if manifest.recorded == "listed":
        arrays["positions"] = lists("positions", positions, pa.array(group.positions))
    if manifest.gold == "listed":
        labels = pa.array(group.labels, mask=group.labels == MISSING)
        arrays["labels"] = lists("labels", positions, labels)
    if manifest.gold == "row":
        arrays["label"] = pa.array(group.labels, mask=group.labels == MISSING)
    for signal in manifest.signals:
        offsets = tokens if isinstance(signal, Float16Vectors) else positions
        for column in signal.columns:
            values = np.ascontiguousarray(group.columns[column.name].astype(column.dtype, copy=False))
            arrays[column.name] = lists(column.name, offsets, _values(column, values))
    return pa.table([arrays[name] for name in schema.names], schema=schema)


def _values(column: Column, values: NDArray[Any]) -> pa.Array:
    if column.width == 1:
        return pa.array(values)
    return pa.FixedSizeBinaryArray.from_buffers(_arrow_type(column), len(values), [None, pa.py_buffer(values)])


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _flat(array: pa.ListArray, dtype: str, width: int) -> tuple[Offsets, NDArray[Any]]:
    """(offsets from 0, values [n] or [n, width]) of a list array, without copying the values."""
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.flatten()
    if width == 1:
        return offsets - offsets[0], values.to_numpy(zero_copy_only=False)
    data = np.frombuffer(values.buffers()[1], np.dtype(dtype))
    start = values.offset * width
    return offsets - offsets[0], data[start : start + len(values) * width].reshape(-1, width)
