"""The dump on disk: plain Parquet that anyone reads, a manifest that refuses what it does not know, found damages."""

import os
import random
import shutil
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import Dump, DumpError, UsageError
from shared.dump import shards as shards_module
from shared.dump.codecs import Column, Sparse, TopK, counts_of
from shared.dump.integrity.receipts import Receipt, shard_path
from shared.dump.integrity.verification import verify
from shared.dump.layouts import LAYOUTS
from shared.dump.manifest import Manifest, read_manifest
from shared.dump.parquet.scan import scan_shards
from shared.dump.parquet.tables import shard_schema, to_table
from shared.dump.parquet.unpack import from_table
from shared.dump.reader import GroupReader
from shared.dump.rowgroup import Lists, RowGroup, from_flat, join, to_flat
from shared.dump.shards import open_shard, read_row_group
from shared.dump.signals import Signal
from shared.storage import Folder
from shared.storage.files import only_one, write_atomically, write_text_atomically
from shared.storage.on_disk import save_into
from shared.storage.ranges import RangeFile
from tests.hand_edits import edit_manifest, sign

TASKS = ("causal-lm", "masked-lm", "sequence-classification", "token-classification", "encoder")


@pytest.fixture(scope="module")
def dumps(make_dump: Any) -> dict[str, Path]:
    """One finished dump of each task, all with hidden states; not to be changed."""
    return {task: make_dump(task, hidden="0,2") for task in TASKS}


@pytest.fixture
def copy(dumps: dict[str, Path], place: Folder) -> Folder:
    """A dump of four shards to be damaged, wherever dumps may be."""
    return copied(dumps["sequence-classification"], place)


def copied(dump: Path, place: Folder) -> Folder:
    save_into(place, lambda path: shutil.copytree(dump, path, dirs_exist_ok=True))
    return place


def shard(folder: Any, index: int) -> Any:
    return folder / "shards" / f"{index:05d}.parquet"


def receipt(folder: Folder, index: int) -> Folder:
    return folder / "shards" / f"{index:05d}.json"


def flip(path: Any, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << (at % 8)
    path.write_bytes(content)


# --- plain Parquet ---------------------------------------------------------------------------------------------------


def is_plain(dtype: Any) -> bool:
    if isinstance(dtype, pl.List):
        return is_plain(dtype.inner)
    return dtype == pl.Binary or dtype.is_numeric()


@pytest.mark.parametrize("task", TASKS)
def test_polars_reads_every_column_with_its_own_expressions(task: str, dumps: dict[str, Path]) -> None:
    """`pl.scan_parquet` and `bin.reinterpret` alone, with the widths that the schema's descriptions give."""
    manifest = Dump(dumps[task]).manifest
    frame = pl.scan_parquet(f"{dumps[task]}/shards/*.parquet")
    schema = frame.collect_schema()
    assert schema.names() == shard_schema(manifest).names
    assert all(is_plain(dtype) for dtype in schema.dtypes()), schema
    numbers = {"float16": pl.Float16, "float32": pl.Float32}
    tokens = frame.select(pl.col("input_ids").list.len().sum()).collect().item()
    for signal in manifest.signals:
        for column in signal.columns:
            values = frame.select(pl.col(column.name).explode(empty_as_null=False)).collect()[column.name]
            width = column.width
            if width is None:
                values = values.explode(empty_as_null=False)
            elif width > 1:
                kind = pl.Array(numbers[column.dtype], width)
                values = values.bin.reinterpret(dtype=kind).explode()
            assert values.null_count() == 0
            assert not values.cast(pl.Float64).is_nan().any()
            if column.name.startswith("hidden"):
                assert width is not None
                assert len(values) == tokens * width


@pytest.mark.parametrize("task", TASKS)
def test_duckdb_reads_every_column(task: str, dumps: dict[str, Path]) -> None:
    query = f"select * from read_parquet('{dumps[task]}/shards/*.parquet') order by row"
    found = duckdb.sql(query).fetchall()
    expected = pl.scan_parquet(f"{dumps[task]}/shards/*.parquet").sort("row").collect().rows()
    assert found == expected


@pytest.mark.parametrize("task", TASKS)
def test_files_have_the_manifests_schema_and_no_extension_types(task: str, dumps: dict[str, Path]) -> None:
    manifest = read_manifest(Folder.of(dumps[task]))
    for index in range(manifest.shards):
        file = pq.ParquetFile(shard(dumps[task], index))
        assert file.schema_arrow.equals(shard_schema(manifest))
        assert b"ARROW:extension" not in shard(dumps[task], index).read_bytes()
        for field in file.schema_arrow:
            assert field.metadata[b"description"], f"{field.name} does not say what it holds"
        for group in range(file.metadata.num_row_groups):
            assert file.metadata.row_group(group).column(0).statistics.min is not None


def test_a_dump_is_nothing_but_parquet_json_and_text(dumps: dict[str, Path]) -> None:
    for folder in dumps.values():
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        shards = {f"shards/{index:05d}.{suffix}" for index in range(4) for suffix in ("json", "parquet")}
        tokenizer = {"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}
        assert names == shards | tokenizer | {"manifest.json", "checksums.json", "README.md"}


def test_row_groups_depend_on_lengths_alone(make_dump: Any, make_teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small row groups, so that batches end in the middle of them."""
    monkeypatch.setattr(shards_module, "ROW_GROUP_BYTES", 20_000)
    teacher = make_teacher("token-classification")
    layouts, frames = [], []
    for budget in (20, 333, 4096):
        out = make_dump("token-classification", teacher=teacher, hidden="all", batch_tokens=budget, shard_rows=40)
        manifest, file = read_manifest(Folder.of(out)), open_shard(shard_path(Folder.of(out), 0), Dump(out).receipts[0])
        layouts.append([file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)])
        assert Dump(out).receipts[0].row_groups == tuple(layouts[-1])
        assert Dump(out).verify() == []
        columns = [column.name for signal in manifest.signals for column in signal.columns]
        groups = [read_row_group(manifest, file, group, columns) for group in range(file.metadata.num_row_groups)]
        frames.append({name: np.concatenate([group.columns[name] for group in groups]) for name in columns})
        rows = np.concatenate([group.rows for group in groups])
        assert sorted(rows.tolist()) == list(range(40))
    assert len(layouts[0]) > 3
    assert layouts[0] == layouts[1] == layouts[2]
    for name in frames[0]:
        for other in frames[1:]:
            np.testing.assert_allclose(frames[0][name].astype(float), other[name].astype(float), atol=5e-3)


# --- row groups -------------------------------------------------------------------------------------------------------


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


# --- Dump.positions and Dump.vectors ---------------------------------------------------------------------------------

POSITION_COLUMNS = {
    "row": pl.Int64,
    "position": pl.Int32,
    "token_id": pl.Int32,
    "token": pl.String,
    "label": pl.Int32,
    "ids": pl.List(pl.Int64),
    "texts": pl.List(pl.String),
    "log_probs": pl.List(pl.Float64),
    "exact": pl.UInt32,
    "tail": pl.Float64,
    "entropy": pl.Float64,
}


@pytest.mark.parametrize("task", TASKS[:-1])
@pytest.mark.parametrize("labelled", [True, False])
def test_positions_have_one_schema_whatever_is_recorded(
    task: str, labelled: bool, make_dump: Any, toy_rows: Any
) -> None:
    rows = [{k: v for k, v in row.items() if labelled or k not in ("label", "tags")} for row in toy_rows(task, 5)]
    frame = Dump(make_dump(task, data=rows)).positions()
    assert dict(frame.collect_schema()) == POSITION_COLUMNS
    collected = frame.collect()
    assert dict(collected.schema) == POSITION_COLUMNS
    assert collected["row"].n_unique() == 5
    if task.endswith("classification"):
        assert (collected["label"].null_count() < len(collected)) == labelled
    else:
        assert collected["label"].null_count() == 0


def test_rows_without_a_recorded_position_are_simply_absent(make_dump: Any) -> None:
    """An empty text, or one of a single token, has nothing to predict; its neighbours keep their own values."""
    dump = Dump(make_dump("causal-lm", data=["", "fox", "a", "", "the lazy dog", ""], top_k=3))
    lengths = dict(dump.scan().select("row", pl.col("input_ids").list.len()).collect().iter_rows())
    found = dump.positions().collect()
    assert lengths[0] == lengths[3] == lengths[5] == 0
    assert lengths[2] == 1
    assert found["row"].value_counts().sort("row").rows() == [
        (row, length - 1) for row, length in sorted(lengths.items()) if length > 1
    ]
    assert found.filter(row=4)["position"].to_list() == list(range(lengths[4] - 1))
    masked = Dump(make_dump("masked-lm", data=["", "fox", ""], top_k=3))
    assert masked.positions().collect()["row"].to_list() == [1]
    words = Dump(make_dump("token-classification", data=[{"tokens": []}, {"tokens": ["fox"]}, {"tokens": []}]))
    assert words.positions().collect()["row"].to_list() == [1]


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm", "token-classification"])
def test_a_dump_of_nothing_but_empty_rows_can_be_read(task: str, make_dump: Any) -> None:
    rows = [{"tokens": []}] * 3 if task == "token-classification" else [""] * 3
    dump = Dump(make_dump(task, data=[{"text": row} if isinstance(row, str) else row for row in rows]))
    assert dump.verify() == []
    assert len(dump.positions().collect()) == 0
    assert dict(dump.positions().collect().schema) == POSITION_COLUMNS
    assert len(dump.scan().collect()) == 3


def test_tokens_are_readable_and_padding_of_the_head_has_no_name(
    dumps: dict[str, Path], tiny_tokenizer: Any, tiny_causal_tokenizer: Any
) -> None:
    for task, tokenizer in (("causal-lm", tiny_causal_tokenizer), ("masked-lm", tiny_tokenizer)):
        dump = Dump(dumps[task])
        assert len(dump.token_texts) == len(tokenizer) < dump.manifest.vocabulary
        frame = dump.positions().collect()
        ids = dict(dump.scan().select("row", "input_ids").collect().iter_rows())
        for row, position, token_id in frame.select("row", "position", "token_id").iter_rows():
            assert ids[row][position] == token_id
    seen = dict(Dump(dumps["causal-lm"]).positions().select("token_id", "token").collect().iter_rows())
    assert all(text == tiny_causal_tokenizer.decode([index]) for index, text in seen.items() if "\ufffd" not in text)


def test_asking_for_what_is_not_there_names_what_is(dumps: dict[str, Path]) -> None:
    with pytest.raises(DumpError, match=r"no distribution is recorded.*encoder"):
        Dump(dumps["encoder"]).positions()
    with pytest.raises(DumpError, match=r"no vectors named 'hidden\.1'.*hidden\.0, hidden\.2"):
        Dump(dumps["encoder"]).vectors("hidden.1")


# --- a dump elsewhere -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_dump_says_the_same_wherever_it_is(task: str, dumps: dict[str, Path], in_memory: Folder) -> None:
    here, there = Dump(dumps[task]), Dump(copied(dumps[task], in_memory))
    assert there.manifest == here.manifest
    assert there.receipts == here.receipts
    assert there.token_texts == here.token_texts
    frames = [(here.scan(), there.scan()), (here.vectors("hidden.2"), there.vectors("hidden.2"))]
    if task != "encoder":
        frames.append((here.positions(), there.positions()))
    for one, other in frames:
        assert one.collect_schema() == other.collect_schema()
        assert one.collect().equals(other.collect())
        few = pl.col("row").is_between(20, 30)
        assert one.filter(few).collect().equals(other.filter(few).collect())
        assert one.head(7).collect().equals(other.head(7).collect())
        assert one.head(7).filter(few).collect().equals(other.head(7).filter(few).collect())
        assert one.select(pl.len()).collect().equals(other.select(pl.len()).collect())
        assert (
            one.filter(few)
            .select(pl.col("row").max())
            .collect()
            .equals(other.filter(few).select(pl.col("row").max()).collect())
        )


def test_a_frame_of_files_elsewhere_fetches_no_more_than_it_needs(
    in_memory: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 2**62, 200_000)
    files = [in_memory / f"{index}.parquet" for index in range(3)]
    for index, file in enumerate(files):
        table = pa.table({"row": np.arange(200_000) + 200_000 * index, "noise": noise})
        options = {"row_group_size": 50_000, "compression": "none", "write_page_checksum": True}
        file.write(partial(pq.write_table, table, **options))
    fetched: dict[str, int] = {}
    fetch = RangeFile._fetched

    def counted(file: RangeFile, size: int) -> bytes:
        part = fetch(file, size)
        fetched[file._path[-9:]] = fetched.get(file._path[-9:], 0) + len(part)
        return part

    monkeypatch.setattr(RangeFile, "_fetched", counted)
    bare = Receipt(rows=len(table), tokens=0, positions=0, bytes=0, sha256="", row_groups=(50_000,) * 4)
    rows = [range(200_000 * index, 200_000 * (index + 1)) for index in range(3)]
    frame = scan_shards(list(zip(files, [bare] * 3, rows, strict=True)), table.schema, lambda _: None)
    assert not fetched, "it is lazy"
    whole, footer = files[0].size(), 2**17
    assert len(frame.head(3).collect()) == 3
    assert list(fetched) == ["0.parquet"]
    assert fetched["0.parquet"] < whole / 4 + footer
    fetched.clear()
    assert frame.select(pl.col("row").sum()).collect().item() == 300_000 * 599_999
    assert sorted(fetched) == ["0.parquet", "1.parquet", "2.parquet"]
    assert all(size < whole / 2 + footer for size in fetched.values())
    fetched.clear()
    found = frame.filter(pl.col("row") == 250_001).collect()
    assert found.rows() == [(250_001, noise[50_001])]
    # The numbers of all rows of one file, and all columns of one row group.
    assert list(fetched) == ["1.parquet"]
    assert fetched["1.parquet"] < whole * 3 / 4 + footer


def test_a_dump_elsewhere_streams_to_a_file(dumps: dict[str, Path], in_memory: Folder, tmp_path: Path) -> None:
    dump = Dump(copied(dumps["masked-lm"], in_memory))
    dump.positions().select("row", "entropy").sink_parquet(tmp_path / "entropy.parquet")
    expected = Dump(dumps["masked-lm"]).positions().select("row", "entropy").collect()
    assert pl.read_parquet(tmp_path / "entropy.parquet").equals(expected)


# --- the manifest ----------------------------------------------------------------------------------------------------


def test_another_format_version_is_refused(copy: Folder) -> None:
    edit_manifest(copy, format_version=8, something_new=[1])
    with pytest.raises(DumpError, match=r"manifest\.json: format version 8, .* reads versions 1 to 7; upgrade Lectern"):
        Dump(copy)
    edit_manifest(copy, format_version=0)
    with pytest.raises(DumpError, match=r"format version 0, .* dump again"):
        Dump(copy)


@pytest.mark.parametrize("content", ["", "{", '{"format_version": 1}', "[]", "null", "\x00\x01", '{"a": 1}'])
def test_a_damaged_manifest_is_named(content: str, copy: Folder) -> None:
    (copy / "manifest.json").write_text(content)
    sign(copy)
    with pytest.raises(DumpError, match=r"manifest\.json: damaged manifest"):
        Dump(copy)


def test_a_manifest_that_is_not_text_is_named(copy: Folder) -> None:
    (copy / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DumpError, match=r"manifest\.json: damaged manifest"):
        Dump(copy)


def test_an_unknown_entry_or_a_bad_value_is_named(copy: Folder) -> None:
    edit_manifest(copy, vocabulary=0)
    with pytest.raises(DumpError, match="vocabulary"):
        Dump(copy)
    edit_manifest(copy, vocabulary=5, surprise=1)
    with pytest.raises(DumpError, match="surprise"):
        Dump(copy)


def test_a_folder_without_a_dump_says_so(place: Folder) -> None:
    place.make()
    for folder in (place, place / "nowhere"):
        with pytest.raises(DumpError, match=f"^{folder}: no dump here"):
            Dump(folder)


def test_differences_names_each_key_that_changes_content_and_no_other(dumps: dict[str, Path]) -> None:
    mine = read_manifest(Folder.of(dumps["sequence-classification"]))
    assert mine.differences(mine) == []
    teacher = mine.teacher.model_copy(update={"name": "elsewhere", "revision": "abc"})
    assert mine.differences(mine.model_copy(update={"teacher": teacher, "lectern_version": "9"})) == []
    other = mine.model_copy(
        update={
            "label_names": ("neutral", "negative", "positive"),
            "options": mine.options.model_copy(update={"seed": 5}),
            "signals": mine.signals[:1],
        }
    )
    assert [difference.split(":")[0] for difference in mine.differences(other)] == [
        "label_names",
        "options.seed",
        *(f"signals.hidden.{layer}.{key}" for layer in (0, 2) for key in ("codec", "layer", "per", "site", "width")),
    ]
    assert "options.seed: the dump has 0, this command asks for 5" in mine.differences(other)


# --- damages ---------------------------------------------------------------------------------------------------------


def test_a_fresh_dump_has_no_damage_and_reads_anywhere(dumps: dict[str, Path], copy: Folder) -> None:
    for folder in (*dumps.values(), copy):
        assert Dump(folder).verify() == []


def read_for_training(folder: Folder, index: int) -> list[pa.Table] | str:
    """A shard's row groups as a trainer reads them, with all columns; or what the trainer stops with."""
    dump = Dump(folder)
    reader = GroupReader(dump.path, dump.manifest, {index: dump.receipts[index]})
    codecs = [dump.distribution, *dump.manifest.vectors.values()]
    names = [column.name for codec in codecs for column in codec.columns]
    try:
        groups = [reader.read(group, names) for group in range(len(reader.group_rows))]
    except DumpError as error:
        return str(error)
    return [to_table(dump.manifest, shard_schema(dump.manifest), group) for group in groups]


def test_every_flipped_byte_is_found_and_never_trained_on(copy: Folder) -> None:
    """40 random bytes of a shard, the first and the last among them; a trainer stops, or need not read the byte."""
    whole, content, stopped = shard(copy, 1).read_bytes(), read_for_training(copy, 1), 0
    places = [0, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 38)]
    for at in places:
        flip(shard(copy, 1), at)
        damages = Dump(copy).verify()
        assert len(damages) == 1
        assert "00001.parquet" in damages[0]
        found = read_for_training(copy, 1)
        stopped += isinstance(found, str)
        assert "00001.parquet" in found if isinstance(found, str) else found == content
        assert not isinstance(read_for_training(copy, 0), str)
        shard(copy, 1).write_bytes(whole)
    assert stopped > len(places) / 2
    assert Dump(copy).verify() == []


@pytest.mark.parametrize("kept", [0, 3, 1000, -1])
def test_a_shard_cut_short(kept: int, copy: Folder) -> None:
    shard(copy, 2).write_bytes(shard(copy, 2).read_bytes()[:kept])
    assert_one_damage(copy, "00002.parquet")


def test_a_missing_shard(copy: Folder) -> None:
    shard(copy, 3).remove()
    assert_one_damage(copy, "00003.parquet")


def test_a_missing_receipt(copy: Folder) -> None:
    receipt(copy, 0).remove()
    assert_one_damage(copy, "00000.parquet")


@pytest.mark.parametrize("content", ["", "{}", '{"rows": 1}', "\x00"])
def test_a_damaged_receipt(content: str, copy: Folder) -> None:
    receipt(copy, 0).write_text(content)
    assert_one_damage(copy, "00000.json")


def assert_one_damage(folder: Folder, name: str) -> None:
    damages = Dump(folder).verify()
    assert len(damages) == 1
    assert damages[0].startswith(f"{folder}/shards/{name}: "), "not named as the user named it"
    with pytest.raises(DumpError, match=rf"1 of 4 shards are missing.*{name[:5]}|{name[:5]}.*: damaged"):
        Dump(folder).require_complete()


def test_a_shard_that_vanishes_while_it_is_in_use_is_named(copy: Folder) -> None:
    dump = Dump(copy)
    dump.require_complete()
    reader = GroupReader(dump.path, dump.manifest, dump.receipts)
    shard(copy, 1).remove()
    with pytest.raises(DumpError, match=r"00001\.parquet"):
        reader.sizes([])


def test_swapped_shards(copy: Folder) -> None:
    """Each with its own receipt, so that sizes and checksums fit: the numbers do not."""
    for file in (shard, receipt):
        first, second = file(copy, 0), file(copy, 1)
        held = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(held)
    damages = Dump(copy).verify()
    assert [damage.split(": ")[0] for damage in damages] == [str(receipt(copy, index)) for index in (0, 1)]
    assert "the receipt of shard 00001, not 00000" in damages[0]


def test_a_shard_of_another_dump(copy: Folder, dumps: dict[str, Path]) -> None:
    for file in (shard, receipt):
        file(copy, 0).write_bytes(file(Folder.of(dumps["encoder"]), 0).read_bytes())
    (damage,) = Dump(copy).verify()
    assert damage.startswith(f"{receipt(copy, 0)}: this receipt belongs to another dump")


def test_strangers_among_the_shards(copy: Folder) -> None:
    (copy / "shards" / "00004.parquet").write_bytes(b"")
    (copy / "shards" / "00001.parquet.tmp").write_bytes(b"")
    damages = Dump(copy).verify()
    assert len(damages) == 2
    assert all("does not belong to this dump" in damage for damage in damages)


def test_a_changed_tokenizer(copy: Folder) -> None:
    path = copy / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace('"fox"', '"fux"'))
    assert [damage for damage in verify(copy) if "tokenizer.json: not as it was written" in damage]
    sign(copy)
    assert [damage for damage in verify(copy) if "not the tokenizer that the manifest describes" in damage]
    path.write_text("{")
    sign(copy)
    assert [damage for damage in verify(copy) if "tokenizer.json: cannot be read" in damage]
    path.remove()
    assert [damage for damage in verify(copy) if "tokenizer.json: missing" in damage]


def test_pages_carry_their_own_checksums(dumps: dict[str, Path], tmp_path: Path) -> None:
    """So that readers of other projects notice damage too."""
    path = shutil.copy(shard(dumps["sequence-classification"], 0), tmp_path / "shard.parquet")
    column = (
        pq.ParquetFile(path).metadata.row_group(0).column(pq.ParquetFile(path).schema_arrow.names.index("hidden.2"))
    )
    flip(Path(path), column.data_page_offset + column.total_compressed_size - 5)
    with pytest.raises((OSError, pa.ArrowInvalid), match=r"CRC|crc"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


# --- atomic writes ---------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text_atomically(path, "before")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "before"


def test_a_file_has_its_name_only_once_it_is_whole(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("half")
        assert not (tmp_path / "file").exists()
        temporary.write_text("whole")

    write_atomically(tmp_path / "file", write)
    assert (tmp_path / "file").read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the power may fail and leave a name without its content; the name itself is flushed last."""
    steps: list[str] = []
    replace = os.replace

    def flush(descriptor: int) -> None:
        steps.append("name" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")

    def rename(*names: Path) -> None:
        steps.append("rename")
        replace(*names)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    write_text_atomically(tmp_path / "file", "whole")
    assert steps == ["content", "rename", "name"]


def test_a_folder_is_kept_to_one_process_until_that_ends(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from shared.storage.files import only_one\n"
        f"with only_one(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another run is at work in this folder"), only_one(tmp_path):
            pass
        other.kill()
    with only_one(tmp_path):
        assert list(tmp_path.iterdir()) == []
