"""Row groups: flat arrays -> plain Arrow tables (`unpack` is the way back), by a schema that the manifest decides.

Shapes: R rows, T tokens of all rows, P recorded positions of all rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shared.dump.codecs import Column, counts_of
from shared.dump.manifest import Manifest
from shared.dump.signals import Per

MISSING = -100
# Columns that are no codec's; which of them a dump has, its manifest says.
PLAIN = ("row", "input_ids", "token_type_ids", "positions", "labels", "label")

# What is recorded where the column `positions` says.
LISTED = ("listed", "listed-next-token", "spans")
# Whose gold labels lie there, too.
LABELLED_LISTS = ("listed", "spans")

Offsets = NDArray[np.int64]
Int32 = NDArray[np.int32]


class Lists:
    """A list column in memory: the values of all positions one after the other, and where each position's begin.

    Cut and joined like an array of one list a position.

    Attributes:
        values: [E].
        offsets: int64 [N + 1]; position n's values are values[offsets[n]:offsets[n + 1]].
    """

    def __init__(self, values: NDArray[Any], offsets: Offsets) -> None:
        self.values, self.offsets = values, offsets

    @classmethod
    def of_counts(cls, values: NDArray[Any], counts: NDArray[Any]) -> "Lists":
        """From how many values each position has."""
        return cls(values, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))

    @property
    def counts(self) -> NDArray[np.int32]:
        """How many values each position has, [N]."""
        return np.diff(self.offsets).astype(np.int32)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, part: slice) -> "Lists":
        start, stop, _ = part.indices(len(self))
        offsets = self.offsets[start : max(start, stop) + 1]
        return Lists(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])


Values = NDArray[Any] | Lists


def join(parts: Sequence[Values]) -> Values:
    """Several pieces of one column, one after the other."""
    if not isinstance(parts[0], Lists):
        return np.concatenate(parts)  # type: ignore[arg-type]
    lists = [part for part in parts if isinstance(part, Lists)]
    return Lists.of_counts(
        np.concatenate([part.values for part in lists]), np.concatenate([part.counts for part in lists])
    )


def from_flat(columns: Sequence[Column], flat: Mapping[str, NDArray[Any]]) -> dict[str, Values]:
    """What a codec's `encode` gives, as arrays -> one entry a column."""
    return {
        column.name: Lists.of_counts(flat[column.name], flat[counts_of(column.name)])
        if column.is_list
        else flat[column.name]
        for column in columns
    }


def to_flat(columns: Mapping[str, Values]) -> dict[str, NDArray[Any]]:
    """One entry a column -> what a codec's `decode` takes, as arrays."""
    flat: dict[str, NDArray[Any]] = {}
    for name, values in columns.items():
        if isinstance(values, Lists):
            flat[name], flat[counts_of(name)] = values.values, values.counts
        else:
            flat[name] = values
    return flat


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
        columns: the codecs' columns, [n, width] ([n] at width 1), `Lists` of n where there are different numbers of
            values; n is T, P or R, as what the signal is recorded per.
        questions: int64 [R], where rows are windows of a question's context: the question's row in the files. A row
            group that is read again is without them.
    """

    rows: NDArray[np.int64]
    token_offsets: Offsets
    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.uint8] | None
    position_offsets: Offsets
    positions: NDArray[np.int32]
    labels: NDArray[np.int32]
    columns: dict[str, Values] = field(default_factory=dict)
    questions: NDArray[np.int64] | None = None

    def offsets(self, per: Per) -> Offsets:
        """int64 [R + 1], where each row's entries begin and end in a column of a signal that is recorded per this."""
        return offsets_per(per, self.token_offsets, self.position_offsets)


def offsets_per(per: Per, token_offsets: Offsets, position_offsets: Offsets) -> Offsets:
    """The offsets [R + 1] of entries of which there is one for each token, recorded position or row."""
    return {"token": token_offsets, "position": position_offsets, "row": np.arange(len(token_offsets))}[per]


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
    if manifest.recorded in LISTED:
        fields.append(("positions", numbers(pa.int32()), "indices into input_ids at which a distribution is recorded"))
    if manifest.recorded == "spans":
        fields.append(("question", pa.int64(), "which row of the files this is a window of, from 0"))
    if manifest.gold == "listed":
        fields.append(("labels", numbers(pa.int32(), nullable=True), "gold label at each of `positions`, or null"))
    if manifest.gold == "spans":
        about = (
            "at each of `positions` 1 where the gold answer starts, 2 where it ends, 3 for both, 0 elsewhere, or null"
        )
        fields.append(("labels", numbers(pa.int32(), nullable=True), about))
    if manifest.gold == "row":
        fields.append(("label", pa.int32(), "gold label of the row, or null"))
    at_positions = {
        "next-token": "one for each token but the last: the distribution after token t is that of token t + 1",
        "listed-next-token": "one for each of `positions`: the distribution after token t is that of token t + 1",
        "listed": "one for each of `positions`",
        "spans": "for each of `positions` the logits of starting and of ending the answer; each a softmax over the row",
        "row": "one for the row",
        "none": "",
    }[manifest.recorded]
    for signal in manifest.signals:
        place = {"token": "one for each token", "position": at_positions, "row": "one for the row"}[signal.per]
        fields += [
            (column.name, numbers(_arrow_type(column)), f"{_about(column)}, {place}") for column in signal.columns
        ]
    return pa.schema(
        [
            pa.field(name, type_, nullable=name in ("label",), metadata={"description": about})
            for name, type_, about in fields
        ],
        metadata={"lectern": manifest.model_dump_json(include={"format_version", "task", "recorded", "signals"})},
    )


def to_table(manifest: Manifest, schema: pa.Schema, group: RowGroup) -> pa.Table:
    """A row group as a table of this schema."""

    def lists(name: str, offsets: Offsets, values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, type=schema.field(name).type)

    tokens, positions = group.token_offsets, group.position_offsets
    arrays: dict[str, pa.Array] = {
        "row": pa.array(group.rows),
        "input_ids": lists("input_ids", tokens, pa.array(group.input_ids)),
    }
    if group.token_type_ids is not None:
        arrays["token_type_ids"] = lists("token_type_ids", tokens, pa.array(group.token_type_ids))
    if manifest.recorded in LISTED:
        arrays["positions"] = lists("positions", positions, pa.array(group.positions))
    if manifest.recorded == "spans":
        arrays["question"] = pa.array(group.questions)
    if manifest.gold in LABELLED_LISTS:
        labels = pa.array(group.labels, mask=group.labels == MISSING)
        arrays["labels"] = lists("labels", positions, labels)
    if manifest.gold == "row":
        arrays["label"] = pa.array(group.labels, mask=group.labels == MISSING)
    for signal in manifest.signals:
        offsets = group.offsets(signal.per)
        for column in signal.columns:
            arrays[column.name] = lists(column.name, offsets, _arrow_values(column, group.columns[column.name]))
    return pa.table([arrays[name] for name in schema.names], schema=schema)


def _arrow_values(column: Column, values: Values) -> pa.Array:
    if isinstance(values, Lists):
        numbers = pa.array(values.values.astype(column.dtype, copy=False))
        return pa.ListArray.from_arrays(pa.array(values.offsets, pa.int32()), numbers, type=_arrow_type(column))
    array = np.ascontiguousarray(values.astype(column.dtype, copy=False))
    if column.width == 1:
        return pa.array(array)
    return pa.FixedSizeBinaryArray.from_buffers(_arrow_type(column), len(array), [None, pa.py_buffer(array)])


def _arrow_type(column: Column) -> pa.DataType:
    number = pa.from_numpy_dtype(np.dtype(column.dtype))
    if column.is_list:
        return pa.list_(pa.field("element", number, nullable=False))
    return number if column.width == 1 else pa.binary(column.bytes_per_position)


def _about(column: Column) -> str:
    return f"lists of {column.dtype}" if column.is_list else f"{column.dtype} x {column.width}"
