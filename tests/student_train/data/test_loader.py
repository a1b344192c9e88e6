"""Batches: padded rows in which every position, label and vector still belongs to its own token and row."""

import shutil
from collections.abc import Callable
from dataclasses import fields
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from shared import Dump
from shared.dump import reader as reader_module
from shared.dump.codecs import DistributionCodec, SparseTargets, counts_of
from shared.dump.reader import GroupReader
from shared.dump.rowgroup import to_flat
from shared.errors import DumpError, RecipeError
from shared.models.loading import load_tokenizer
from shared.storage import Folder
from shared.storage.on_disk import save_into
from shared.text.examples import WORDS, Columns
from shared.text.tasks import TASKS
from student_train.data import gather, order, sources
from student_train.data.batch import Batch
from student_train.data.batches import TrainingBatches, collate, in_order
from student_train.data.order import Order
from student_train.data.sources import DumpSource, Source, TextSource

OPTIONS: dict[str, dict[str, Any]] = {
    "causal-lm": {"top_k": 5},
    "masked-lm": {"threshold": 0.03, "temperatures": "2"},
    "sequence-classification": {},
    "token-classification": {},
    "encoder": {},
}


@pytest.fixture(scope="module")
def dumps(make_dump: Callable[..., Path]) -> dict[str, Path]:
    return {task: make_dump(task, hidden="0,2", **options) for task, options in OPTIONS.items()}


@pytest.fixture(scope="module")
def pair_dump(make_dump: Callable[..., Path], texts: list[str]) -> Path:
    rows = [
        {"text": one, "second": other, "label": "neutral"} for one, other in zip(texts[:40], texts[40:80], strict=True)
    ]
    return make_dump("sequence-classification", data=rows, pair_column="second", hidden="last")


def stream(source: Source, columns: list[str], batch_size: int | None = 7, **options: Any) -> TrainingBatches:
    order = Order(source.sizes(columns), 3, batch_size, options.pop("batch_tokens", None))
    return TrainingBatches(source, columns, order, **options)


def same(one: Batch, other: Batch) -> bool:
    """Tensor-equal, bit by bit."""
    if one.columns.keys() != other.columns.keys() or one.is_spare != other.is_spare:
        return False
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch)]
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    pairs += [(values, other.columns[name]) for name, values in one.columns.items()]
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        for a, b in pairs
        if isinstance(a, torch.Tensor)
    )


def all_columns(source: Source) -> list[str]:
    codecs = [*source.vectors.values(), *([source.distribution] if source.distribution else [])]
    return [column.name for codec in codecs for column in codec.columns]


def plain_rows(path: Path, recorded: str) -> list[dict[str, Any]]:
    """The dump's rows, one by one, from the raw columns in polars: lists of numbers."""
    dump = Dump(path)
    rows: list[dict[str, Any]] = []
    for raw in dump.scan().collect().iter_rows(named=True):
        ids = raw["input_ids"]
        row = {
            "ids": ids,
            "types": raw.get("token_type_ids"),
            "positions": {
                "next-token": list(range(len(ids) - 1)),
                "listed": raw.get("positions"),
                "row": [0],
                "none": [],
            }[recorded],
            "labels": {"next-token": ids[1:], "listed": raw.get("labels"), "row": [raw.get("label")], "none": []}[
                recorded
            ],
        }
        signals = dump.manifest.signals
        for column in (column for signal in signals for column in signal.columns):
            values = raw[column.name]
            decoded = [np.frombuffer(v, column.dtype).tolist() if isinstance(v, bytes) else v for v in values]
            row[column.name] = decoded
        rows.append(row)
    return rows


def check_against_plain_loop(path: Path, batch_rows: list[int]) -> None:
    source = DumpSource(path)
    columns = all_columns(source)
    loaded = {group: source.load(group, columns) for group in range(len(source.group_rows))}
    place = [(group, row) for group, count in enumerate(source.group_rows) for row in range(count)]
    batch = collate(loaded, np.asarray([place[number] for number in batch_rows]), source)

    rows = [plain_rows(path, source.layout.name)[number] for number in batch_rows]
    longest = max(1, *(len(row["ids"]) for row in rows))
    pad = source.tokenizer.pad_token_id or 0
    assert batch.input_ids.tolist() == [row["ids"] + [pad] * (longest - len(row["ids"])) for row in rows]
    assert batch.attention_mask.tolist() == [[1] * len(row["ids"]) + [0] * (longest - len(row["ids"])) for row in rows]
    if rows[0]["types"] is None:
        assert batch.token_type_ids is None
    else:
        assert batch.token_type_ids.tolist() == [row["types"] + [0] * (longest - len(row["ids"])) for row in rows]
    expected_positions, expected_labels = [], []
    expected_columns: dict[str, list[Any]] = {}
    for index, row in enumerate(rows):
        for position, label in zip(row["positions"], row["labels"], strict=True):
            expected_positions.append(index * longest + position)
            expected_labels.append(-100 if label is None else label)
        for name in columns:
            # A list column is flat, with how many values each position has beside it.
            is_list = name.endswith(".entries")
            values = [value for values in row[name] for value in values] if is_list else row[name]
            expected_columns.setdefault(name, []).extend(values)
            if is_list:
                expected_columns.setdefault(counts_of(name), []).extend(len(values) for values in row[name])
    assert batch.positions.tolist() == expected_positions
    assert batch.labels.tolist() == expected_labels
    assert {name: values.tolist() for name, values in batch.columns.items()} == expected_columns
    for key in source.vectors:
        per_token = source.signals[key].per == "token"
        assert len(batch.columns[key.name]) == (sum(len(row["ids"]) for row in rows) if per_token else len(rows))
    assert {getattr(batch, name).dtype for name in ("input_ids", "attention_mask", "positions", "labels")} == {
        torch.int64
    }


@pytest.mark.parametrize("batch_rows", [[0, 25, 59, 3], [7], [30, 29, 31, 0, 1]])
@pytest.mark.parametrize("task", OPTIONS)
def test_a_batch_is_what_a_plain_loop_over_its_rows_makes(
    dumps: dict[str, Path], task: str, batch_rows: list[int]
) -> None:
    check_against_plain_loop(dumps[task], batch_rows)


def test_a_batch_of_pairs_is_what_a_plain_loop_makes(pair_dump: Path) -> None:
    check_against_plain_loop(pair_dump, [3, 39, 17, 0])


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm", "sequence-classification", "token-classification"])
def test_files_and_a_dump_of_them_give_the_same_batches(
    task: str,
    make_dump: Callable[..., Path],
    make_teacher: Callable[..., Path],
    write_corpus: Callable[..., Path],
    toy_rows: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = write_corpus(tmp_path / "rows.jsonl", toy_rows(task))
    teacher = make_teacher(task)
    # Shards of the size of the text's groups, so that both have the same order of rows within a group...
    monkeypatch.setattr(sources, "TEXT_GROUP_ROWS", 16)
    dump = DumpSource(make_dump(task, teacher=teacher, data=data, max_length=20, seed=5))
    words = task == "token-classification"
    text = TextSource(
        TASKS[task],
        [str(data)],
        Columns("tokens", label="tags", shape=WORDS) if words else Columns("text", label="label"),
        load_tokenizer(str(teacher), RecipeError),
        20,
        dump.label_names,
        seed=5,
    )
    assert text.group_rows == dump.group_rows
    assert (text.label_names, text.has_gold, text.positions) == (dump.label_names, dump.has_gold, dump.positions)

    # ... but for length, so the rows are compared by their numbers.
    def rows(source: Source) -> dict[int, Any]:
        found = {}
        for group in range(len(source.group_rows)):
            loaded = source.load(group, [])
            for at, number in enumerate(loaded.rows.tolist()):
                batch = collate({group: loaded}, np.asarray([[group, at]]), source)
                found[number] = {
                    field.name: value.tolist()
                    for field in fields(batch)
                    if isinstance(value := getattr(batch, field.name), torch.Tensor)
                }
        return found

    assert rows(text) == rows(dump)


def test_only_the_columns_asked_for_are_read(dumps: dict[str, Path]) -> None:
    source = DumpSource(dumps["causal-lm"])
    for columns in ([], ["hidden.2"], ["distribution.floor", "distribution.tail"], ["distribution.entries_0"]):
        assert list(source.load(0, columns).columns) == columns
        (batch,) = islice(stream(source, columns), 1)
        assert [name for name in batch.columns if not name.endswith(counts_of(""))] == columns


def test_in_order_gives_every_row_once_in_its_order(dumps: dict[str, Path]) -> None:
    source = DumpSource(dumps["sequence-classification"])
    batches = list(in_order(source, [], 7))
    rows = plain_rows(dumps["sequence-classification"], "row")
    ids = [
        [token for token, is_real in zip(tokens, mask, strict=True) if is_real]
        for batch in batches
        for tokens, mask in zip(batch.input_ids.tolist(), batch.attention_mask.tolist(), strict=True)
    ]
    assert ids == [row["ids"] for row in rows]
    assert max(len(batch.input_ids) for batch in batches) == 7


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("budget", [{"batch_size": 7}, {"batch_size": None, "batch_tokens": 90}])
@pytest.mark.parametrize("task", OPTIONS)
def test_a_stream_resumed_after_40_batches_gives_the_next_8(
    dumps: dict[str, Path], task: str, budget: dict[str, Any], ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "WINDOW_BYTES", 20_000)
    source = DumpSource(dumps[task])
    columns = all_columns(source)
    for rank in range(ranks):
        whole = list(islice(stream(source, columns, rank=rank, ranks=ranks, **budget), 48))[40:]
        # What is saved is the step's number; everything else is made anew.
        fresh = DumpSource(dumps[task])
        resumed = list(islice(stream(fresh, columns, first_batch=40, rank=rank, ranks=ranks, **budget), 8))
        assert all(same(one, other) for one, other in zip(whole, resumed, strict=True))
        assert not same(whole[0], resumed[1])


@pytest.mark.parametrize("task", OPTIONS)
def test_a_dump_elsewhere_gives_the_same_batches(task: str, dumps: dict[str, Path], in_memory: Folder) -> None:
    save_into(in_memory, lambda path: shutil.copytree(dumps[task], path, dirs_exist_ok=True))
    here, there = DumpSource(dumps[task]), DumpSource(str(in_memory))
    assert there.name == str(in_memory)
    columns = all_columns(here)
    pairs = zip(islice(stream(here, columns), 12), islice(stream(there, columns), 12), strict=True)
    assert all(same(one, other) for one, other in pairs)
    assert there.tokenizer.get_vocab() == here.tokenizer.get_vocab()
    for group in range(len(here.group_rows)):
        assert all(map(np.array_equal, here.gold(group), there.gold(group)))


def test_a_flipped_byte_is_found_before_its_batch_is_used(
    dumps: dict[str, Path], place: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the checksum of its page: the error names file and row group, and no batch has come that has a row of it."""
    monkeypatch.setattr(order, "WINDOW_BYTES", 1)
    save_into(place, lambda path: shutil.copytree(dumps["causal-lm"], path, dirs_exist_ok=True))
    file = place / "shards" / "00002.parquet"
    whole = file.read_bytes()
    metadata = pq.ParquetFile(BytesIO(whole)).metadata
    first, last = metadata.row_group(0).column(0), metadata.row_group(0).column(metadata.num_columns - 1)
    pages = range(first.data_page_offset, last.data_page_offset + last.total_compressed_size)
    damaged_rows = {tuple(ids) for ids in pl.read_parquet(whole)["input_ids"].to_list()}
    random = np.random.default_rng(0)
    for at in random.choice(pages, 25, replace=False).tolist():
        file.write_bytes(whole[:at] + bytes([whole[at] ^ int(random.integers(1, 256))]) + whole[at + 1 :])
        source = DumpSource(place)
        seen: list[Batch] = []
        with pytest.raises(DumpError, match=rf"^{place}/shards/00002\.parquet: damaged.*row group 0"):
            seen.extend(islice(stream(source, all_columns(source), ready=1), 30))
        rows = [pair for batch in seen for pair in zip(batch.input_ids, batch.attention_mask, strict=True)]
        assert not damaged_rows & {tuple(ids[mask.bool()].tolist()) for ids, mask in rows}


@pytest.mark.parametrize("damage", ["columns", "row groups", "lengths"])
def test_a_shard_that_is_not_the_one_written_is_refused(damage: str, dumps: dict[str, Path], tmp_path: Path) -> None:
    """Whole Parquet files with fitting checksums, whose content is not what manifest and receipt say."""
    folder = shutil.copytree(dumps["masked-lm"], tmp_path / "dump")
    file = folder / "shards" / "00001.parquet"
    table = pq.read_table(file)
    if damage == "columns":
        table = table.set_column(0, "row", table["row"].cast("int32"))
    elif damage == "lengths":
        shifted = pa.chunked_array([pa.concat_arrays([chunk[1:], chunk[:1]]) for chunk in table["hidden.2"].chunks])
        table = table.set_column(table.schema.get_field_index("hidden.2"), table.schema.field("hidden.2"), shifted)
    pq.write_table(table, file, row_group_size=5 if damage == "row groups" else None, write_page_checksum=True)
    source = DumpSource(dumps["masked-lm"])
    # As if each had been made for its file: without its seal, a receipt says nothing of the footer.
    bare = {"row_groups": (16,), "seal": None}
    receipts = {index: found.model_copy(update=bare) for index, found in Dump(dumps["masked-lm"]).receipts.items()}
    assert source.group_rows[0] == 16
    reader = GroupReader(Folder.of(folder), Dump(folder).manifest, receipts)
    with pytest.raises(DumpError, match=rf"00001\.parquet.*{damage}"):
        reader.read(1, all_columns(source))
    reader.read(0, all_columns(source))


def test_files_stay_open_up_to_a_number(dumps: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    open_shard = reader_module.open_shard

    def counted(path: Folder, receipt: Any, schema: Any) -> Any:
        opened.append(receipt.seal.shard)
        return open_shard(path, receipt, schema)

    monkeypatch.setattr(reader_module, "open_shard", counted)
    source = DumpSource(dumps["causal-lm"])
    whole = [source.load(group, []).rows.tolist() for group in (0, 1, 2, 3, 0, 1)]
    assert opened == [0, 1, 2, 3]
    opened.clear()
    monkeypatch.setattr(reader_module, "MOST_OPEN", 2)
    source = DumpSource(dumps["causal-lm"])
    assert [source.load(group, []).rows.tolist() for group in (0, 1, 2, 3, 0, 1)] == whole
    assert opened == [0, 1, 2, 3, 0, 1]


def test_sizes_are_those_of_the_row_groups(dumps: dict[str, Path]) -> None:
    source = DumpSource(dumps["causal-lm"])
    for columns in ([], all_columns(source)):
        sizes = source.sizes(columns)
        loaded = [source.load(group, columns) for group in range(len(source.group_rows))]
        assert sizes.rows.tolist() == list(source.group_rows) == [len(group.rows) for group in loaded]
        assert sizes.tokens.tolist() == [len(group.input_ids) for group in loaded]
        held = [
            group.input_ids.nbytes
            + group.positions.nbytes
            + group.labels.nbytes
            + sum(array.nbytes for name, array in to_flat(group.columns).items() if not name.endswith(counts_of("")))
            for group in loaded
        ]
        assert sizes.bytes == pytest.approx(held, rel=0.1)


def test_wide_rows_and_narrow_ones_are_gathered_alike(dumps: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source = DumpSource(dumps["causal-lm"])
    columns = all_columns(source)
    made = []
    for wide in (0, 10**9):
        monkeypatch.setattr(gather, "_WIDE_ROW_BYTES", wide)
        made.append(list(islice(stream(source, columns), 9)))
    assert all(same(one, other) for one, other in zip(*made, strict=True))


def test_a_row_without_tokens_leaves_the_others_as_they_are(make_dump: Callable[..., Path]) -> None:
    """An empty text has no tokens for a byte-level tokenizer; its row is all padding."""
    for selection in ({"top_k": 3}, {"threshold": 0.02}, {"draws": 4}):
        dump = make_dump("causal-lm", data=["the fox", "", "a dog", ""], hidden="last", **selection)
        check_against_plain_loop(dump, [0, 2, 1])
        check_against_plain_loop(dump, [2])


@pytest.mark.parametrize(
    "selection", [{"top_k": 4}, {"top_p": 0.5}, {"threshold": 0.03}, {"threshold": 0.03, "tail": "mass"}, {"draws": 9}]
)
def test_a_batch_from_several_groups_decodes_to_what_its_rows_decode_to_alone(
    selection: dict[str, Any], make_dump: Callable[..., Path], texts: list[str]
) -> None:
    """Rows of four groups out of order, some without any position, against each row gathered and decoded by itself."""
    texts = [*texts[:20], "", "x", *texts[20:40], ""]
    source = DumpSource(make_dump("causal-lm", data=texts, temperatures="0.5,2", shard_rows=12, **selection))
    codec = source.distribution
    assert codec is not None
    columns = [column.name for column in codec.columns]
    loaded = {group: source.load(group, columns) for group in range(len(source.group_rows))}
    references = [[2, 7], [0, 11], [3, 6], [0, 0], [1, 11], [1, 10], [3, 0], [2, 3]]
    together = decoded(codec, collate(loaded, np.asarray(references), source))
    alone = [decoded(codec, collate(loaded, np.asarray([reference]), source)) for reference in references]
    assert [] in alone, "a row without positions is among them"
    assert together == [position for row in alone for position in row]
    assert len(together) > 30


def decoded(codec: DistributionCodec, batch: Batch) -> list[Any]:
    """What each position of a batch decodes to, without the fillings."""
    targets = codec.decode(batch.columns)
    assert isinstance(targets, SparseTargets)
    assert len(targets.ids_NK) == len(batch.positions)
    positions: list[Any] = []
    for index, log_probs_K in enumerate(targets.log_probs_NK):
        is_there_K = log_probs_K > -torch.inf
        sampled = None if targets.sampled_NK is None else targets.sampled_NK[index][is_there_K].tolist()
        sums = {temperature: sums_N[index].item() for temperature, sums_N in targets.log_sums_N.items()}
        kept = targets.ids_NK[index][is_there_K].tolist(), log_probs_K[is_there_K].tolist()
        positions.append((*kept, sampled, targets.tail_N[index].item(), sums))
    return positions
