"""Dumps of questions: what transformers says of each window, row by row; killed and finished; and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from shared import Dump
from shared.dump.inspection import facts, readable_rows, spreads, teacher_accuracy
from shared.dump.layouts.spans import Spans
from shared.errors import UsageError

TASK = "question-answering"
OPTIONS: dict[str, Any] = {"max_length": 32, "stride": 8}


@pytest.fixture(scope="module")
def teacher(make_teacher: Any) -> Path:
    return Path(make_teacher(TASK))


@pytest.fixture(scope="module")
def rows(toy_rows: Any) -> list[dict[str, Any]]:
    return list(toy_rows(TASK, 20))


@pytest.fixture(scope="module")
def dump(make_dump: Any, teacher: Path, rows: list[dict[str, Any]]) -> Dump:
    return Dump(make_dump(TASK, teacher=teacher, data=rows, **OPTIONS))


def test_every_window_has_the_logits_that_transformers_gives_it(
    dump: Dump, teacher: Path, rows: list[dict[str, Any]]
) -> None:
    model = AutoModelForQuestionAnswering.from_pretrained(teacher).eval()
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    found = dump.positions().sort("row", "position").collect().partition_by("row", maintain_order=True)
    row = 0
    for number, each in enumerate(rows):
        encoded = tokenizer(
            each["question"],
            each["context"],
            truncation="only_second",
            max_length=32,
            stride=8,
            return_overflowing_tokens=True,
            return_token_type_ids=True,
        )
        for window, (ids, types) in enumerate(zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)):
            here = found[row]
            with torch.no_grad():
                said = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]))
            recorded = [0] + [at for at, of in enumerate(encoded.sequence_ids(window)) if of == 1]
            assert here["question"].unique().to_list() == [number]
            assert here["position"].to_list() == recorded
            assert here["token_id"].to_list() == [ids[at] for at in recorded]
            for name, logits in (("start", said.start_logits), ("end", said.end_logits)):
                expected = logits[0, recorded].double()
                np.testing.assert_allclose(here[f"{name}_logit"], expected, atol=1e-4)
                np.testing.assert_allclose(here[f"{name}_log_prob"], expected.log_softmax(0), atol=1e-4)
            row += 1
    assert row == len(found) == dump.manifest.corpus.rows
    assert dump.manifest.corpus.questions == len(rows) < row


def test_gold_labels_are_sums_of_one_at_the_start_and_two_at_the_end(dump: Dump, rows: list[dict[str, Any]]) -> None:
    lists = Spans().lists(dump).sort("row").collect()
    tokens = dump.token_texts
    answered = set()
    for row in lists.iter_rows(named=True):
        source = rows[row["question"]]
        if "answer_texts" not in source:
            assert set(row["label"]) == {None}
            continue
        assert sum(row["label"]) == 3
        start = next(at for at, label in enumerate(row["label"]) if label & 1)
        end = next(at for at, label in enumerate(row["label"]) if label & 2)
        if row["position"][start] == 0:
            assert end == start
            continue
        said = "".join(tokens[token].removeprefix("##") for token in row["token_id"][start : end + 1])
        assert said.replace(" ", "") == source["answer_texts"][0].replace(" ", "")
        answered.add(row["question"])
    # Whole answers of three words at most are in some window of 32 tokens.
    assert answered == {number for number, row in enumerate(rows) if row.get("answer_texts")}


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    make_dump: Any, teacher: Path, rows: list[dict[str, Any]], dump: Dump, tmp_path: Path
) -> None:
    folder = tmp_path / "dump"
    make_dump(TASK, teacher=teacher, data=rows, out=folder, **OPTIONS)
    for index in (0, 2):
        (folder / "shards" / f"{index:05d}.json").unlink()
        (folder / "shards" / f"{index:05d}.parquet").unlink()

    make_dump(TASK, teacher=teacher, data=rows, out=folder, **OPTIONS)

    for index in range(dump.manifest.shards):
        name = f"shards/{index:05d}.parquet"
        assert (folder / name).read_bytes() == (dump.path / name).read_bytes()


@pytest.mark.parametrize(("changed", "named"), [({"stride": 4}, "stride"), ({"max_length": 30}, "max_length")])
def test_other_windows_are_another_dump(
    make_dump: Any, teacher: Path, rows: list[dict[str, Any]], dump: Dump, changed: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        make_dump(TASK, teacher=teacher, data=rows, out=dump.path, **{**OPTIONS, **changed})


def test_limit_counts_questions(make_dump: Any, teacher: Path, rows: list[dict[str, Any]], dump: Dump) -> None:
    few = Dump(make_dump(TASK, teacher=teacher, data=rows, limit=6, **OPTIONS))
    assert few.manifest.corpus.questions == 6
    everything = dump.scan().filter(pl.col("question") < 6).select("row", "input_ids").sort("row").collect()
    assert few.scan().select("row", "input_ids").sort("row").collect().equals(everything)


def test_part_of_the_logits_is_refused(make_dump: Any, teacher: Path, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match="question-answering keeps all logits, 8 bytes a token; leave out --top-k"):
        make_dump(TASK, teacher=teacher, data=rows, top_k=1, **OPTIONS)


def test_answers_can_be_left_out(make_dump: Any, teacher: Path, rows: list[dict[str, Any]]) -> None:
    bare = Dump(make_dump(TASK, teacher=teacher, data=rows, answers_column="none", **OPTIONS))
    assert not bare.manifest.labelled
    assert Spans().lists(bare).select(pl.col("label").explode().is_null().all()).collect().item()
    assert teacher_accuracy(bare) is None


def test_people_are_told_of_rows_and_questions(dump: Dump) -> None:
    told = dict(facts(dump))
    assert told["questions"].startswith("20 rows of the files")
    text = "\n".join(readable_rows(dump, 3, 2, 5))
    assert "row 1 · a window of question" in text
    assert "start  gold:" in text
    assert [spread.name for spread in spreads(dump)] == ["tokens a row", "entropy", "top-1 probability"]


def test_entropy_and_accuracy_are_over_a_rows_positions(dump: Dump) -> None:
    entropies, right = [], []
    for row in Spans().lists(dump).collect().iter_rows(named=True):
        for name, mark in (("start", 1), ("end", 2)):
            logits = np.asarray(row[f"{name}_logit"], np.float64)
            probabilities = np.exp(logits) / np.exp(logits).sum()
            entropies.append(-(probabilities * np.log(probabilities)).sum())
            if row["label"][0] is not None:
                right.append(bool(row["label"][int(logits.argmax())] & mark))
    spread = next(each for each in spreads(dump) if each.name == "entropy")
    assert (spread.count, spread.mean) == (len(entropies), pytest.approx(np.mean(entropies)))
    assert teacher_accuracy(dump) == (pytest.approx(np.mean(right)), len(right))
