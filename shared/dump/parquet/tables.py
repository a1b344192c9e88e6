"""Row groups as plain Arrow tables, with the schema that follows from the manifest (`unpack` is the reverse).

Shapes: R rows, T tokens of all rows, P recorded positions of all rows.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shared.dump.codecs import Column
from shared.dump.layouts import Field
from shared.dump.manifest import Manifest
from shared.dump.rowgroup import MISSING, Flat, Lists, RowGroup, Values
from shared.errors import DumpError
from shared.parsing import parse_json

ROW = Field("row", "int64", "row number in the corpus, from 0", is_list=False)
INPUT_IDS = Field("input_ids", "int32", "token ids as the teacher saw them")
TOKEN_TYPES = Field("token_type_ids", "uint8", "0 for the first text of a pair, 1 for the second")

# The key of a schema's metadata under which a shard describes itself, and the manifest's entries that it has there.
_FACTS, _DESCRIBED = "lectern", ("task", "layout", "signals")


def plain_fields(manifest: Manifest) -> tuple[Field, ...]:
    """Return the columns of a dump that are not a codec's."""
    pairs = (TOKEN_TYPES,) if manifest.pairs else ()
    return (ROW, INPUT_IDS, *pairs, *manifest.layout.fields(manifest.labelled))


def training_columns(manifest: Manifest) -> list[str]:
    """Return the names of the plain columns that training reads with every row."""
    return [field.name for field in plain_fields(manifest) if field.trains]


def few_values(manifest: Manifest) -> set[str]:
    """Return the names of the plain columns with few different values: token types and gold labels."""
    return {field.name for field in plain_fields(manifest) if field.holds_gold} | {TOKEN_TYPES.name}


def shard_schema(manifest: Manifest) -> pa.Schema:
    """Return the Arrow schema of every shard; each field has a description of its content."""
    fields = [
        pa.field(field.name, _field_type(field), _may_be_null(field), {"description": field.about})
        for field in plain_fields(manifest)
    ]
    places = {"token": "one for each token", "position": manifest.layout.place, "row": "one for the row"}
    for signal in manifest.signals:
        for column in signal.columns:
            about = {"description": f"{_about(column)}, {places[signal.per]}"}
            fields.append(pa.field(column.name, _list_of(_column_type(column)), nullable=False, metadata=about))
    return pa.schema(fields, metadata={_FACTS: manifest.model_dump_json(include={"format_version", *_DESCRIBED})})


def is_described(manifest: Manifest, schema: pa.Schema) -> bool:
    """Whether a shard's schema says that it has this manifest's task, layout and signals.

    Shards of format versions 1 to 4 say it in other words, and count as described.
    """
    try:
        facts = parse_json(schema.metadata[_FACTS.encode()])
        if facts["format_version"] < 5:
            return True
        said = manifest.model_validate({**manifest.model_dump(mode="json"), **{key: facts[key] for key in _DESCRIBED}})
    except (LookupError, TypeError, ValueError, DumpError):
        return False
    return all(getattr(said, key) == getattr(manifest, key) for key in _DESCRIBED)


def to_table(manifest: Manifest, schema: pa.Schema, group: RowGroup) -> pa.Table:
    """Return a row group as a table with this schema."""
    plain = {
        ROW.name: Flat(group.rows),
        INPUT_IDS.name: Flat(group.input_ids, group.token_offsets),
        **manifest.layout.pack(group, manifest.labelled),
    }
    if group.token_type_ids is not None:
        plain[TOKEN_TYPES.name] = Flat(group.token_type_ids, group.token_offsets)
    arrays = {
        field.name: _in_rows(plain[field.name], _numbers(field, plain[field.name].numbers()), schema.field(field.name))
        for field in plain_fields(manifest)
    }
    for signal in manifest.signals:
        offsets = group.offsets(signal.per)
        for column in signal.columns:
            values = _column_values(column, group.columns[column.name])
            arrays[column.name] = _in_rows(Flat(values, offsets), values, schema.field(column.name))
    return pa.table([arrays[name] for name in schema.names], schema=schema)


def _in_rows(column: Flat, values: pa.Array, field: pa.Field) -> pa.Array:
    """Return the values of all rows as an array with one entry per row."""
    if column.offsets is None:
        return values
    return pa.ListArray.from_arrays(pa.array(column.offsets, pa.int32()), values, type=field.type)


def _numbers(field: Field, numbers: NDArray[Any]) -> pa.Array:
    return pa.array(numbers, mask=numbers == MISSING if field.holds_gold else None)


def _column_values(column: Column, values: Values) -> pa.Array:
    if isinstance(values, Lists):
        numbers = pa.array(values.values.astype(column.dtype, copy=False))
        return pa.ListArray.from_arrays(pa.array(values.offsets, pa.int32()), numbers, type=_column_type(column))
    array = np.ascontiguousarray(values.astype(column.dtype, copy=False))
    if column.width == 1:
        return pa.array(array)
    return pa.FixedSizeBinaryArray.from_buffers(_column_type(column), len(array), [None, pa.py_buffer(array)])


def _field_type(field: Field) -> pa.DataType:
    number = pa.from_numpy_dtype(np.dtype(field.dtype))
    return _list_of(number, field.holds_gold) if field.is_list else number


def _may_be_null(field: Field) -> bool:
    """Whether the column may have nulls; in a list column the numbers may be null, but never the list itself."""
    return field.holds_gold and not field.is_list


def _column_type(column: Column) -> pa.DataType:
    number = pa.from_numpy_dtype(np.dtype(column.dtype))
    if column.is_list:
        return _list_of(number)
    return number if column.width == 1 else pa.binary(column.bytes_per_position)


def _list_of(type_: pa.DataType, nullable: bool = False) -> pa.DataType:
    return pa.list_(pa.field("element", type_, nullable=nullable))


def _about(column: Column) -> str:
    return f"lists of {column.dtype}" if column.is_list else f"{column.dtype} x {column.width}"
