"""Scores by group, and words that no model saw: `distill eval` gives the results of a plain loop over the file."""

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from seqeval.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer
from typer.testing import CliRunner

from shared.errors import CorpusError, UsageError
from shared.text.columns import ScoredColumns
from shared.text.corpus import Corpus
from shared.text.examples import Columns
from student_train import distill
from student_train.cli import app
from student_train.recipe.recipe import Recipe
from student_train.scoring.evaluate import evaluate
from student_train.scoring.report import Report

LANGUAGES = ("de", "en", "fi")
TAGS = ("O", "B-X", "I-X")
LABELS = ("negative", "neutral", "positive")
BY_LANGUAGE = ScoredColumns(group_column="lang")
KINDS = [".jsonl", ".parquet"]


@pytest.fixture(scope="module")
def rows(texts: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Of lengths that `evaluate` reorders, in languages of unequal size; one German row of two has no gold labels."""
    choose = random.Random(3)
    made: dict[str, list[dict[str, Any]]] = {"token-classification": [], "sequence-classification": []}
    for number, text in enumerate(texts[:70]):
        language = choose.choice(("en", "en", "en", "de", "fi"))
        known = language != "de" or number % 2 == 0
        tags = [choose.choice(TAGS) for _ in text.split()]
        made["token-classification"].append({"tokens": text.split(), "tags": tags if known else None, "lang": language})
        label = choose.choice(LABELS) if known else None
        made["sequence-classification"].append({"text": text, "label": label, "lang": language})
    return made


@pytest.fixture(scope="module")
def models(make_teacher: Callable[..., Path]) -> dict[str, Path]:
    return {task: make_teacher(task) for task in ("token-classification", "sequence-classification", "causal-lm")}


@functools.cache
def loaded(folder: Path) -> tuple[Any, Any]:
    """A tagger's tokenizer and the model itself."""
    return AutoTokenizer.from_pretrained(folder), AutoModelForTokenClassification.from_pretrained(folder).eval()


def first_pieces(folder: Path, words: list[str], max_length: int) -> dict[int, str]:
    """word -> tag that the model gives its first piece, by transformers alone; words it does not see are not in."""
    tokenizer, model = loaded(folder)
    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        tags = model(**encoded).logits[0].argmax(-1).tolist()
    at = encoded.word_ids(0)
    return {word: TAGS[tags[at.index(word)]] for word in {each for each in at if each is not None}}


def plain_f1(folder: Path, rows: list[dict[str, Any]], max_length: int = 64) -> float:
    truth = [row["tags"] for row in rows if row["tags"]]
    guesses = []
    for row in rows:
        if row["tags"]:
            seen = first_pieces(folder, row["tokens"], max_length)
            guesses.append([seen.get(word, "O") for word in range(len(row["tokens"]))])
    return float(f1_score(truth, guesses, zero_division=0))


def scored(folder: Path, data: Path, names: ScoredColumns = BY_LANGUAGE, **options: Any) -> Report:
    return evaluate(folder, [str(data)], names, device="cpu", **options)


# ---------------------------------------------------------------- groups


@pytest.mark.parametrize("kind", KINDS)
def test_f1_by_language_is_that_of_each_languages_rows_alone(
    kind: str, models: dict[str, Path], rows: Any, write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    task = "token-classification"
    report = scored(models[task], write_corpus(tmp_path / f"data{kind}", rows[task]))
    assert report.groups is not None
    assert tuple(report.groups.metrics) == LANGUAGES
    by_language = {name: [row for row in rows[task] if row["lang"] == name] for name in LANGUAGES}
    assert report.groups.rows == {name: len(members) for name, members in by_language.items()}
    expected = {name: plain_f1(models[task], members) for name, members in by_language.items()}
    assert len(set(expected.values())) == 3
    assert {name: each["f1"] for name, each in report.groups.metrics.items()} == pytest.approx(expected)
    assert report.groups.mean["f1"] == pytest.approx(sum(expected.values()) / 3)
    # The micro one beside it is that of all rows, grouped or not.
    assert report.metrics["f1"] == pytest.approx(plain_f1(models[task], rows[task]))
    assert report.metrics["f1"] != pytest.approx(report.groups.mean["f1"], abs=1e-4)
    assert scored(models[task], tmp_path / f"data{kind}", ScoredColumns()).groups is None


def test_accuracy_by_group_is_that_of_each_groups_labelled_rows(
    models: dict[str, Path], rows: Any, write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    task = "sequence-classification"
    folder = models[task]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    right: dict[str, list[bool]] = {name: [] for name in LANGUAGES}
    for row in rows[task]:
        if row["label"]:
            with torch.no_grad():
                logits = model.eval()(**tokenizer(row["text"], return_tensors="pt", truncation=True)).logits
            right[row["lang"]].append(LABELS[int(logits.argmax())] == row["label"])
    report = scored(folder, write_corpus(tmp_path / "data.jsonl", rows[task]))
    assert report.groups is not None
    assert {name: each["accuracy"] for name, each in report.groups.metrics.items()} == pytest.approx(
        {name: sum(each) / len(each) for name, each in right.items()}
    )


def test_a_group_without_gold_labels_has_no_scores_and_is_no_part_of_the_mean(
    models: dict[str, Path], write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [{"text": "a fox", "label": label, "lang": name} for label, name in (("neutral", "en"), (None, "de"))]
    report = scored(models["sequence-classification"], write_corpus(tmp_path / "data.jsonl", rows))
    assert report.groups is not None
    assert list(report.groups.metrics) == ["en"]
    assert report.groups.mean == report.groups.metrics["en"] == report.metrics


# ---------------------------------------------------------------- words that are cut off


@pytest.mark.parametrize("positions", [None, "all"])
def test_words_that_are_cut_off_are_wrong_and_do_not_vanish(
    positions: str | None, models: dict[str, Path], write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    """Two entities, of which the model sees the first alone: a perfect model has a recall of 1/2 or less."""
    task, words = "token-classification", ["fox", "lazy", "dog", "wizards"]
    seen = first_pieces(models[task], words[:2], 64)
    # Gold tags as the model gives them where it sees the words, and entities where it does not.
    rows = [{"tokens": words, "tags": [seen[0], seen[1], "B-X", "B-X"], "lang": "en"}]
    data = write_corpus(tmp_path / "data.jsonl", rows)
    tokenizer = AutoTokenizer.from_pretrained(models[task])
    length = next(
        size
        for size in range(3, 40)
        if 2 in tokenizer(words, is_split_into_words=True, truncation=True, max_length=size).word_ids()
    )
    report = scored(models[task], data, max_length=length - 1, positions=positions)
    assert report.groups is not None
    assert report.metrics["recall"] <= 0.5
    assert report.groups.metrics["en"] == report.metrics
    if positions is None:
        assert report.metrics["f1"] == pytest.approx(plain_f1(models[task], rows, length - 1))


@pytest.mark.parametrize("max_length", [5, 12, 64])
def test_f1_of_rows_cut_to_any_length_is_that_of_whole_sentences(
    max_length: int, models: dict[str, Path], rows: Any, write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    task = "token-classification"
    report = scored(models[task], write_corpus(tmp_path / "data.jsonl", rows[task]), max_length=max_length)
    assert report.metrics["f1"] == pytest.approx(plain_f1(models[task], rows[task], max_length))


def test_a_word_that_the_tokenizer_drops_keeps_its_place_among_the_others(
    models: dict[str, Path], write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    """A blank has no pieces. Its tag would join or part the entities beside it, and is missed."""
    rows = [{"tokens": ["fox", " ", "dog", " "], "tags": ["B-X", "I-X", "I-X", "B-X"], "lang": "en"}]
    assert set(first_pieces(models["token-classification"], rows[0]["tokens"], 64)) == {0, 2}
    report = scored(models["token-classification"], write_corpus(tmp_path / "data.jsonl", rows))
    assert report.metrics["f1"] == pytest.approx(plain_f1(models["token-classification"], rows))
    assert report.metrics["recall"] == 0


# ---------------------------------------------------------------- what people see, and what is refused


def test_the_command_line_prints_and_writes_the_mean_and_every_group(
    models: dict[str, Path], rows: Any, write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    task = "token-classification"
    data, json_file = write_corpus(tmp_path / "data.jsonl", rows[task]), tmp_path / "scores.json"
    command = ["eval", str(models[task]), "--data", str(data), "--group-column", "lang", "--json", str(json_file)]
    ended = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert ended.exit_code == 0, ended.output
    lines = ended.output.splitlines()
    written = json.loads(json_file.read_text())["groups"]
    assert written["column"] == "lang"
    assert any(line.split() == ["mean", "f1", "over", "3", "lang", f"{written['mean']['f1']:.4g}"] for line in lines), (
        ended.output
    )
    header = next(
        index for index, line in enumerate(lines) if line.split() == ["lang", "rows", "f1", "precision", "recall"]
    )
    for line, name in zip(lines[header + 1 :], LANGUAGES, strict=True):
        f1 = written["metrics"][name]["f1"]
        assert line.split()[:3] == [name, str(written["rows"][name]), f"{f1:.4f}"]
        assert len(line) == len(lines[header])


def test_a_recipe_scores_by_group_and_keeps_it_in_metrics_json(
    make_dump: Callable[..., Path], rows: Any, write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    task = "token-classification"
    data = write_corpus(tmp_path / "data.jsonl", rows[task])

    def recipe(**section: Any) -> Recipe:
        return Recipe.model_validate(
            {
                "output": tmp_path / "student",
                "dump": make_dump(task, data=data),
                "student": {"kind": "bilstm", "embedding_size": 8, "hidden_size": 8},
                "loss": [{"kind": "kl"}],
                "training": {"max_steps": 2, "batch_size": 8, "device": "cpu"},
                "eval": {"data": [str(data)], **section},
            }
        )

    with pytest.raises(CorpusError, match="no column 'language'; it has 'tokens', 'tags', 'lang'"):
        distill.run(recipe(group_column="language"), resume=False)
    assert not (tmp_path / "student").exists()
    result = distill.run(recipe(group_column="lang"), resume=False)
    written = json.loads((result.output / distill.METRICS).read_text())["groups"]
    assert tuple(written["metrics"]) == LANGUAGES
    assert written["mean"]["f1"] == pytest.approx(sum(each["f1"] for each in written["metrics"].values()) / 3)
    assert "| mean f1 over 3 lang |" in (result.output / "README.md").read_text()


def test_a_row_without_a_group_is_refused_with_its_place(
    models: dict[str, Path], write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [{"text": "a fox", "label": "neutral", "lang": name} for name in ("en", None)]
    data = write_corpus(tmp_path / "data.jsonl", rows)
    with pytest.raises(CorpusError, match=r"line 2: column 'lang' is empty; name the group of every row"):
        scored(models["sequence-classification"], data)


def test_a_language_model_has_no_scores_by_group(
    models: dict[str, Path], write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    data = write_corpus(tmp_path / "data.jsonl", [{"text": "a fox", "lang": "en"}])
    with pytest.raises(UsageError, match=r"'lang' is for tasks that are scored row by row \(sequence-classification"):
        scored(models["causal-lm"], data)


def test_the_group_is_no_part_of_what_a_corpus_is(write_corpus: Callable[..., Path], tmp_path: Path) -> None:
    """A dump of the same values is the same dump, whatever their groups."""
    data = write_corpus(tmp_path / "data.jsonl", [{"text": "a fox", "lang": "en"}])
    plain, grouped = Corpus([str(data)], Columns("text")), Corpus([str(data)], Columns("text", group="lang"))
    assert plain.survey().fingerprint == grouped.survey().fingerprint
    assert [example.group for example in grouped.examples()] == ["en"]
