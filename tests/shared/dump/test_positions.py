"""`Dump.positions` and `Dump.vectors`: one schema whatever is recorded, and readable tokens."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from shared import Dump, DumpError

TASKS = ("causal-lm", "masked-lm", "sequence-classification", "token-classification", "encoder")


@pytest.fixture(scope="module")
def dumps(make_dump: Any) -> dict[str, Path]:
    """One finished dump of each task, all with hidden states; not to be changed."""
    return {task: make_dump(task, hidden="0,2") for task in TASKS}


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
