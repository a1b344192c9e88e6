"""The dump on disk: plain Parquet that anyone reads, wherever it is; a manifest that refuses what it does not know."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared import Dump, DumpError
from shared.dump import shards as shards_module
from shared.dump.integrity.receipts import Receipt, shard_path
from shared.dump.manifest import read_manifest
from shared.dump.parquet.scan import scan_shards
from shared.dump.parquet.tables import shard_schema
from shared.dump.shards import open_shard, read_row_group
from shared.storage import Folder
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
