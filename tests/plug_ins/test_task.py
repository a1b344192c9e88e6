"""A task from outside, through the table alone: how many stars a review gives, from a dump to a student's scores."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from shared import Dump
from shared.dump.layouts import BatchIndex
from shared.dump.rowgroup import MISSING
from shared.errors import CorpusError, RecipeError, UsageError
from shared.text.columns import ColumnNames, ScoredColumns, gold_column
from shared.text.examples import Columns, Example
from shared.text.predictions import Predictions
from shared.text.tasks import TASKS, Task
from shared.text.tasks.base import encode
from shared.text.tokenized import TokenizedRow, Tokenizing
from student_train import distill
from student_train.scoring import evaluate as evaluation
from student_train.scoring.evaluate import evaluate
from tests.student_train.runs import GOLD, KL, TRANSFORMER, recipe

STARS = ("*", "**", "***")


class Rating(Task):
    """Reviews with 1 to 3 stars. Its models say everything half as loud as it is meant; long reviews count more."""

    name = "rating"
    auto_class = "AutoModelForSequenceClassification"
    architectures = ("ForSequenceClassification",)
    layouts = {None: "row"}  # noqa: RUF012
    has_labels = True
    label_names = STARS
    scores_rows = True
    needs_examples = True
    scoring_columns = ("tokens",)

    def columns_of_texts(self, names: ColumnNames, labels_required: bool | None) -> Columns:
        return Columns("review", None, *gold_column(None, "stars", labels_required))

    def check_row(self, how: Tokenizing, example: Example) -> None:
        if example.label not in (None, "1", "2", "3"):
            raise CorpusError(f"{example.label} stars; give 1 to 3.")

    def tokenize(self, how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
        labels = [MISSING if example.label is None else int(str(example.label)) - 1 for example in examples]
        position = np.zeros(1, np.int32)
        return [
            TokenizedRow(np.asarray(ids, np.int32), None, position, np.asarray([label], np.int32), columns=length)
            for ids, label in zip(encode(how, examples)["input_ids"], labels, strict=True)
            for length in [{"tokens": np.asarray([len(ids)])}]
        ]

    def logits_of(self, output: Any) -> Tensor:
        return 2 * output.logits

    def notes(
        self, rows: Sequence[int], logits: Tensor, index: BatchIndex, columns: Mapping[str, Tensor]
    ) -> dict[int, int]:
        return dict(zip(rows, columns["tokens"].tolist(), strict=True))

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        off, weights = 0, 0
        for row, guess, gold in zip(predictions.rows, predictions.predicted, predictions.labels, strict=True):
            if gold[0] != MISSING:
                assert isinstance(predictions.examples[row].text, str)
                off += predictions.notes[row] * abs(int(guess[0]) - int(gold[0]))
                weights += predictions.notes[row]
        return {"stars_off": off / weights} if weights else {}


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LATENCY_SECONDS", 0.0)
    monkeypatch.setitem(TASKS, "rating", Rating())


@pytest.fixture(scope="module")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher("sequence-classification")


@pytest.fixture(scope="module")
def rows(texts: list[str]) -> list[dict[str, Any]]:
    return [{"review": text, "stars": 1 + row % 3 if row % 4 else None} for row, text in enumerate(texts[:20])]


@pytest.fixture
def dump(teacher: Path, rows: list[dict[str, Any]], make_dump: Callable[..., Path]) -> Path:
    return make_dump("rating", teacher=teacher, data=rows)


@torch.inference_mode()
def test_a_dump_is_what_the_task_says(dump: Path, teacher: Path, rows: list[dict[str, Any]]) -> None:
    opened = Dump(dump)
    assert (opened.manifest.label_names, opened.manifest.labelled) == (STARS, True)
    assert opened.manifest.corpus.labelled_rows == 15
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(teacher),
        AutoTokenizer.from_pretrained(teacher),
    )
    found = opened.positions().sort("row").collect()
    assert found["label"].to_list() == [None if row["stars"] is None else row["stars"] - 1 for row in rows]
    for row, log_probs in zip(rows, found["log_probs"], strict=True):
        logits = model(**tokenizer(row["review"], return_tensors="pt")).logits[0]
        np.testing.assert_allclose(log_probs, (2 * logits).log_softmax(-1), atol=1e-4)


def test_from_a_dump_to_a_students_scores(
    dump: Path, teacher: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    corpus = [str(dump.parent / "corpus.jsonl")]
    sections: dict[str, Any] = {"dump": dump, "eval": {"data": corpus}}
    result = distill.run(recipe(tmp_path / "student", TRANSFORMER, KL, GOLD, **sections), resume=False)
    assert (tmp_path / "student" / "config.json").exists()
    assert result.steps == 3
    report = evaluate(tmp_path / "student", corpus, ScoredColumns(), dump=dump, task_name="rating", device="cpu")
    assert list(report.metrics) == ["stars_off"]
    assert 0 < report.metrics["stars_off"] <= 2
    assert evaluate(teacher, corpus, ScoredColumns(), dump=dump, task_name="rating", device="cpu").agreement == 1
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    lengths = [len(tokenizer(row["review"])["input_ids"]) for row in rows]
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    off = weights = 0
    for row, length in zip(rows, lengths, strict=True):
        if row["stars"] is not None:
            with torch.inference_mode():
                guess = int(student(**tokenizer(row["review"], return_tensors="pt")).logits.argmax())
            off, weights = off + length * abs(guess + 1 - row["stars"]), weights + length
    assert report.metrics["stars_off"] == pytest.approx(off / weights)


def test_a_student_learns_from_files_as_well(dump: Path, teacher: Path, tmp_path: Path) -> None:
    corpus = [str(dump.parent / "corpus.jsonl")]
    data = {"task": "rating", "train": corpus, "tokenizer": str(teacher), "max_length": 64}
    distill.run(recipe(tmp_path / "student", TRANSFORMER, GOLD, data=data), resume=False)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert tuple(model.config.id2label.values()) == STARS


def test_what_the_task_refuses_is_refused_with_its_words(
    teacher: Path, dump: Path, make_dump: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match=r"corpus.jsonl, line 1: 4 stars; give 1 to 3"):
        make_dump("rating", teacher=teacher, data=[{"review": "a fox", "stars": 4}])
    with pytest.raises(UsageError, match=r"the task rating reads no messages column; chats are for causal-lm"):
        make_dump("rating", teacher=teacher, data=["a fox"], messages_column="chat")
    with pytest.raises(UsageError, match=r"unknown task 'ratings'; there are: causal-lm, .*rating"):
        make_dump("ratings", teacher=teacher, data=["a fox"])
    validation = {"share": 0.4, "metric": "stars_off"}
    with pytest.raises(RecipeError, match=r"'stars_off' is not available for rating during training"):
        distill.run(recipe(tmp_path / "student", TRANSFORMER, KL, dump=dump, validation=validation), resume=False)
