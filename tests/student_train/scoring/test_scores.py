"""Scores of students and teachers, against plain loops over rows."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from seqeval.metrics import f1_score as seqeval_f1
from transformers import AutoTokenizer

from shared.dump.codecs.selection.presets import PRESETS
from shared.errors import LecternError, RecipeError, UsageError
from shared.text.columns import ScoredColumns
from shared.text.tasks import TASKS
from student_train import cli, distill
from student_train.scoring import evaluate
from tests.student_train.runs import KL, TRANSFORMER, recipe


@lru_cache
def loaded(folder: Path, task: str) -> tuple[Any, Any]:
    return (
        AutoTokenizer.from_pretrained(folder),
        getattr(transformers, TASKS[task].auto_class).from_pretrained(folder).eval(),
    )


def plain_logits(folder: Path, task: str, *text: Any, **options: Any) -> tuple[torch.Tensor, Any]:
    """One row through the model, alone, as transformers' documentation does it."""
    tokenizer, model = loaded(folder, task)
    encoded = tokenizer(*text, return_tensors="pt", truncation=True, max_length=64, **options)
    with torch.no_grad():
        return model(**encoded).logits[0].double(), encoded


def score(folder: Path, data: Path, dump: Path | None = None, **options: Any) -> evaluate.Report:
    return evaluate.evaluate(folder, [str(data)], ScoredColumns(), dump, device="cpu", **options)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def students(make_teacher: Callable[..., Path]) -> dict[str, Path]:
    """Models of other weights than the teachers, to be scored against them."""
    return {task: make_teacher(task, seed=7) for task in TASKS}


def test_accuracy_is_that_of_a_plain_loop_over_labelled_rows(
    students: dict[str, Path], corpora: dict[str, Path]
) -> None:
    task = "sequence-classification"
    rows = [row for row in read(corpora[task]) if row["label"]]
    names = ("negative", "neutral", "positive")
    right = [names[int(plain_logits(students[task], task, row["text"])[0].argmax())] == row["label"] for row in rows]
    report = score(students[task], corpora[task])
    assert report.rows == 60
    assert len(rows) < 60
    assert report.metrics["accuracy"] == pytest.approx(sum(right) / len(right))


def test_perplexity_is_that_of_a_plain_loop_over_tokens(students: dict[str, Path], corpora: dict[str, Path]) -> None:
    total, count = 0.0, 0
    for row in read(corpora["causal-lm"]):
        logits, encoded = plain_logits(students["causal-lm"], "causal-lm", row["text"])
        ids = encoded["input_ids"][0]
        if len(ids) > 1:
            total += float(torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum"))
            count += len(ids) - 1
    report = score(students["causal-lm"], corpora["causal-lm"])
    assert report.metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)


def test_entity_f1_is_that_of_a_plain_loop_over_words(students: dict[str, Path], corpora: dict[str, Path]) -> None:
    task, names = "token-classification", ("O", "B-X", "I-X")
    truth, guesses = [], []
    for row in read(corpora[task]):
        if row["tags"] is None:
            continue
        logits, encoded = plain_logits(students[task], task, row["tokens"], is_split_into_words=True)
        words = encoded.word_ids(0)
        firsts = [words.index(word) for word in sorted({word for word in words if word is not None})]
        guesses.append([names[int(logits[at].argmax())] for at in firsts])
        truth.append(row["tags"][: len(firsts)])
    report = score(students[task], corpora[task])
    assert report.metrics["f1"] == pytest.approx(seqeval_f1(truth, guesses))
    assert report.metrics["f1"] > 0


@pytest.mark.parametrize("task", ["sequence-classification", "causal-lm"])
def test_agreement_and_divergence_are_those_of_two_plain_models(
    task: str, students: dict[str, Path], teachers: dict[str, Path], corpora: dict[str, Path], dumps: dict[str, Path]
) -> None:
    agreed: list[bool] = []
    divergences: list[float] = []
    for row in read(corpora[task]):
        mine, theirs = (plain_logits(folder[task], task, row["text"])[0] for folder in (students, teachers))
        if task == "causal-lm":
            mine, theirs = mine[:-1], theirs[:-1]
        mine, theirs = mine.reshape(-1, mine.shape[-1]), theirs.reshape(-1, theirs.shape[-1])
        agreed += (mine.argmax(-1) == theirs.argmax(-1)).tolist()
        if task == "causal-lm":
            # The dump has the exact probability of the ids above its threshold; what is outside is one class.
            is_exact = theirs.softmax(-1) > PRESETS["default"][0].threshold
            is_exact.scatter_(1, theirs.argmax(-1, keepdim=True), True)
            p, q = (logits.softmax(-1) * is_exact for logits in (theirs, mine))
            p, q = (torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1) for kept in (p, q))
        else:
            p, q = theirs.softmax(-1), mine.softmax(-1)
        divergences += torch.nn.functional.kl_div(q.log().nan_to_num(neginf=0.0), p, reduction="none").sum(-1).tolist()
    report = score(students[task], corpora[task], dumps[task])
    assert report.agreement == pytest.approx(np.mean(agreed), abs=0.01)
    assert report.divergence == pytest.approx(np.mean(divergences), rel=5e-3)
    itself = score(teachers[task], corpora[task], dumps[task])
    assert itself.agreement == pytest.approx(1.0, abs=0.01)
    assert itself.divergence == pytest.approx(0.0, abs=1e-3)


def test_rows_are_cut_to_what_the_model_takes_or_to_what_is_asked(
    teachers: dict[str, Path], write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    long = write_corpus(tmp_path / "long.jsonl", ["the quick brown fox jumps over a lazy dog " * 20])
    whole = score(teachers["causal-lm"], long).metrics["loss"]
    short = score(teachers["causal-lm"], long, max_length=10).metrics["loss"]
    logits, encoded = plain_logits(teachers["causal-lm"], "causal-lm", read(long)[0]["text"])
    ids = encoded["input_ids"][0]
    assert len(ids) == 64
    losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    assert whole == pytest.approx(float(losses.mean()), rel=1e-4)
    assert short == pytest.approx(float(losses[:9].mean()), rel=1e-4)


def test_a_roberta_student_is_scored_on_rows_as_long_as_it_takes(
    dumps: dict[str, Path], write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    """Its first positions are reserved: 65 of them are room for 64 tokens."""
    long = write_corpus(tmp_path / "long.jsonl", [{"text": "the quick brown fox " * 40, "label": "neutral"}])
    student = {**TRANSFORMER, "model_type": "roberta"}
    made = recipe(tmp_path / "a", student, KL, dump=dumps["sequence-classification"], eval={"data": [str(long)]})
    assert distill.run(made, resume=False).report is not None


def test_a_folder_that_cannot_be_scored_is_refused(
    teachers: dict[str, Path], corpora: dict[str, Path], dumps: dict[str, Path], tmp_path: Path
) -> None:
    task = "sequence-classification"
    with pytest.raises(RecipeError, match="there is no such folder"):
        score(tmp_path / "no" / "model" / "here", corpora[task])
    with pytest.raises(RecipeError, match=r"has no weights for .*classifier.*lacks that head"):
        score(teachers["encoder"], corpora[task], task_name=task)
    with pytest.raises(UsageError, match="embeddings are scored on pairs of texts: name the columns of both"):
        score(teachers["encoder"], corpora[task])
    unknown = shutil.copytree(teachers["encoder"], tmp_path / "unknown")
    content = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps(content | {"architectures": ["BertForNextSentencePrediction"]}))
    with pytest.raises(RecipeError, match=r"task cannot be determined from its architecture .*; give --task"):
        score(unknown, corpora[task])
    with pytest.raises(RecipeError, match="a dump of causal-lm, but the model is one for sequence-classification"):
        score(teachers[task], corpora[task], dumps["causal-lm"])
    with pytest.raises(UsageError, match="device 'tpu' cannot be used here"):
        evaluate.evaluate(teachers[task], [str(corpora[task])], ScoredColumns(), device="tpu")
    bare = tmp_path / "bare"
    shutil.copytree(teachers[task], bare, ignore=shutil.ignore_patterns("token*"))
    with pytest.raises(RecipeError, match="no tokenizer beside this model"):
        score(bare, corpora[task])


def test_rows_without_gold_labels_are_refused_unless_a_dump_is_given(
    teachers: dict[str, Path], dumps: dict[str, Path], write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    task = "sequence-classification"
    bare = write_corpus(tmp_path / "bare.jsonl", [{"text": "the lazy dog", "label": None}])
    with pytest.raises(UsageError, match=r"bare.jsonl: no row has a gold label"):
        score(teachers[task], bare)
    assert score(teachers[task], bare, dumps[task]).agreement == 1.0


def test_rows_longer_than_the_model_reads_are_refused(teachers: dict[str, Path], corpora: dict[str, Path]) -> None:
    task = "sequence-classification"
    with pytest.raises(UsageError, match=r"--max-length 100000: .* reads at most 64 tokens"):
        evaluate.evaluate(teachers[task], [str(corpora[task])], ScoredColumns(), max_length=100_000)


def test_a_model_whose_logits_are_nan_is_not_scored(
    teachers: dict[str, Path], corpora: dict[str, Path], tmp_path: Path
) -> None:
    task = "sequence-classification"
    model, _ = evaluate.load_model(teachers[task], task)
    model.classifier.weight.data.fill_(float("nan"))
    shutil.copytree(teachers[task], tmp_path / "nan")
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(LecternError, match="logits are NaN"):
        score(tmp_path / "nan", corpora[task])


@pytest.mark.parametrize("file", ["missing/scores.json", ".", "x" * 300])
def test_where_scores_cannot_be_written_is_told_before_the_work(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "load_model", lambda *_: pytest.fail("the work has begun"))
    monkeypatch.setattr(sys, "argv", ["distill", "eval", "model", "--data", "rows", "--json", str(tmp_path / file)])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert " ".join(capsys.readouterr().err.split()).startswith("error: --json ")
