"""Row groups: lists of any lengths as flat arrays, and what comes back from a table."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.dump.codecs import Column, Sparse, TopK, counts_of
from shared.dump.layouts import LAYOUTS
from shared.dump.manifest import Manifest
from shared.dump.parquet.tables import shard_schema, to_table
from shared.dump.parquet.unpack import from_table
from shared.dump.rowgroup import Lists, RowGroup, from_flat, join, to_flat
from shared.dump.signals import Signal


@st.composite
def lists(draw: st.DrawFn) -> list[list[int]]:
    """Some lists of numbers, any of which may be empty."""
    return draw(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4), max_size=8))


def lists_of(rows: list[list[int]]) -> Lists:
    flat = np.array([value for row in rows for value in row], np.int32)
    return Lists.of_counts(flat, np.array([len(row) for row in rows], np.int64))


def rows_of(values: Any) -> list[list[int]]:
    """One list a position, from `Lists` alone."""
    return [values.values[values.offsets[at] : values.offsets[at + 1]].tolist() for at in range(len(values))]


@given(lists(), st.data())
@settings(max_examples=100)
def test_lists_are_cut_as_an_array_of_lists_is(rows: list[list[int]], data: st.DataObject) -> None:
    start, stop = (data.draw(st.integers(-10, 10) | st.none()) for _ in range(2))
    part = lists_of(rows)[start:stop]
    assert rows_of(part) == rows[start:stop]
    assert part.counts.tolist() == [len(row) for row in rows[start:stop]]
    assert part.offsets[0] == 0
    assert len(part.values) == part.offsets[-1]
    assert rows_of(part[1:]) == rows[start:stop][1:]


@given(st.lists(lists(), min_size=1, max_size=4))
@settings(max_examples=100)
def test_lists_join_to_one_after_the_other(parts: list[list[list[int]]]) -> None:
    joined = join([lists_of(part) for part in parts])
    assert rows_of(joined) == [row for part in parts for row in part]
    assert isinstance(joined, Lists)
    assert joined.values.dtype == np.int32
    cut = lists_of(parts[0])
    assert rows_of(join([cut[:2], cut[2:]])) == parts[0]


def test_arrays_join_as_arrays() -> None:
    joined = join([np.array([[1, 2]]), np.zeros((0, 2), int), np.array([[3, 4], [5, 6]])])
    assert isinstance(joined, np.ndarray)
    assert joined.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_flat_columns_have_the_counts_of_lists_beside_their_values() -> None:
    columns = (Column("a", "int32", None), Column("b", "float16", 2))
    flat: dict[str, Any] = {
        "a": np.array([7, 8, 9], np.int32),
        counts_of("a"): np.array([2, 0, 1], np.int32),
        "b": np.zeros((3, 2), np.float16),
    }
    values = from_flat(columns, flat)
    assert list(values) == ["a", "b"]
    assert rows_of(values["a"]) == [[7, 8], [], [9]]
    back = to_flat(values)
    assert back.keys() == flat.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, flat[name])
        assert array.dtype == flat[name].dtype


@given(st.lists(lists(), min_size=1, max_size=5), st.data())
@settings(max_examples=60)
def test_a_row_group_with_lists_comes_back_from_its_table_whole_or_in_part(
    rows: list[list[list[int]]], data: st.DataObject
) -> None:
    """Rows of any number of positions, none among them, each with a list, a number and a pair of numbers."""
    codec = Sparse(name="d", selection=TopK(k=2), vocabulary=9, temperatures=(0.5, 2.0))
    facts: dict[str, Any] = {"format_version": 1, "task": "none", "layout": LAYOUTS["listed"], "labelled": True}
    manifest = Manifest.model_construct(**facts, pairs=False, signals=(Signal(site="d", per="position", codec=codec),))
    positions = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    count = int(positions[-1])
    labels = np.where(np.arange(count) % 3 == 0, -100, np.arange(count)).astype(np.int32)
    group = RowGroup(
        rows=np.arange(5, 5 + len(rows)),
        token_offsets=np.arange(len(rows) + 1) * 2,
        input_ids=np.arange(2 * len(rows), dtype=np.int32),
        token_type_ids=None,
        position_offsets=positions,
        positions=np.arange(count, dtype=np.int32) + 100,
        labels=labels,
        columns={
            "d.entries": lists_of([values for row in rows for values in row]),
            "d.tail": np.arange(count, dtype=np.uint8),
            "d.floor": np.arange(count, dtype=np.uint8) + 50,
            "d.log_sums": np.arange(2 * count).reshape(count, 2).astype(np.float16),
        },
    )
    table = to_table(manifest, shard_schema(manifest), group)
    table.validate(full=True)
    assert table["d.entries"].to_pylist() == rows
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start, len(rows)))
    found = from_table(manifest, table.slice(start, stop - start), list(group.columns))
    part = slice(positions[start], positions[stop])
    assert found.rows.tolist() == group.rows[start:stop].tolist()
    assert found.input_ids.tolist() == list(range(2 * start, 2 * stop))
    assert found.token_offsets.tolist() == list(range(0, 2 * (stop - start) + 1, 2))
    assert found.position_offsets.tolist() == (positions[start : stop + 1] - positions[start]).tolist()
    assert found.positions.tolist() == group.positions[part].tolist()
    assert found.labels.tolist() == labels[part].tolist()
    assert rows_of(found.columns["d.entries"]) == [values for row in rows[start:stop] for values in row]
    for name in ("d.tail", "d.floor", "d.log_sums"):
        np.testing.assert_array_equal(found.columns[name], group.columns[name][part])
