"""Students of the task encoder: trained on embeddings, saved for sentence-transformers, scored on pairs of texts."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import pearsonr, spearmanr
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from shared.dump.facts import Pooling
from shared.errors import CorpusError, LecternError, RecipeError, UsageError
from shared.models.sentence_folder import read_sentence_folder, write_sentence_folder
from shared.text.columns import ColumnNames, ScoredColumns
from student_train import distill
from student_train.cli import app
from student_train.recipe.recipe import Recipe
from student_train.scoring.evaluate import evaluate
from student_train.scoring.export import export
from tests.student_train.runs import BILSTM, TRANSFORMER, recipe

LOSSES = {"kind": "embedding", "metric": "cosine"}, {"kind": "similarity"}
COLUMNS = {"text_column": "text_a", "pair_column": "text_b"}
NAMES = ScoredColumns(**COLUMNS)
ROWS = [
    {"text_a": a, "text_b": b, "score": score}
    for a, b, score in [
        ("the quick brown fox", "a brown fox", 4.5),
        ("seven wizards box", "a lazy dog", 0.25),
        ("the quick brown fox", "some jugs of liquor", 1),
        ("a lazy dog jumps", "the dog jumps over a fox while seven wizards box some jugs", 2.5),
        ("naïve café", "café", 3),
    ]
]


@pytest.fixture(scope="module")
def teacher(make_teacher: Callable[..., Path]) -> Path:
    folder = make_teacher("encoder")
    write_sentence_folder(folder, Pooling(mode="mean", normalized=True), 32, 48)
    return folder


@pytest.fixture(scope="module")
def dump(make_dump: Callable[..., Path], teacher: Path) -> Path:
    return make_dump("encoder", teacher=teacher, hidden="last")


@pytest.fixture(scope="module")
def pairs(write_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", ROWS)


@pytest.fixture(scope="module")
def students(dump: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind, both scored at the end and while they train."""
    found = {}
    for student in (TRANSFORMER, BILSTM):
        out = tmp_path_factory.mktemp("students") / str(student["kind"])
        pair_files = {"data": [str(pairs)], **COLUMNS}
        sections = {"eval": pair_files, "validation": {"pairs": pair_files, "every_steps": 1}}
        distill.run(recipe(out, student, *LOSSES, dump=dump, **sections), resume=False)
        found[student["kind"]] = out
    return found


@torch.inference_mode()
def by_hand(folder: Path, texts: list[str], max_length: int = 48) -> np.ndarray:
    """Normalized means, one text at a time."""
    model, tokenizer, rows = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder), []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        row_D = model(**inputs).last_hidden_state[0].double().mean(0)
        rows.append(row_D / row_D.norm())
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("kind", ["transformer", "bilstm"])
def test_the_saved_student_says_how_its_embeddings_are_made(students: dict[str, Path], kind: str) -> None:
    folder = read_sentence_folder(str(students[kind]), LecternError)
    assert folder is not None
    assert folder.pooling == Pooling(mode="mean", normalized=True)
    assert folder.max_length == 48
    card = (students[kind] / "README.md").read_text()
    assert "library_name: sentence-transformers" in card
    assert ("trust_remote_code=True" in card) == (kind == "bilstm")
    assert "| spearman |" in card


@pytest.mark.parametrize("kind", ["transformer", "bilstm"])
def test_the_metrics_are_correlations_of_cosines(students: dict[str, Path], pairs: Path, kind: str) -> None:
    first, second = (by_hand(students[kind], [row[side] for row in ROWS]) for side in ("text_a", "text_b"))
    cosines, scores = (first * second).sum(1), [row["score"] for row in ROWS]
    expected = {"spearman": spearmanr(cosines, scores)[0], "pearson": pearsonr(cosines, scores)[0]}
    report = evaluate(students[kind], [str(pairs)], NAMES)
    assert report.metrics == pytest.approx(expected, abs=1e-5)
    assert list(report.metrics) == ["spearman", "pearson"]
    assert (report.task, report.rows) == ("encoder", len(ROWS))
    assert json.loads((students[kind] / "metrics.json").read_text())["metrics"] == pytest.approx(expected, abs=1e-5)


def test_training_keeps_the_weights_that_score_best_on_the_pairs(students: dict[str, Path]) -> None:
    stage = json.loads((students["transformer"] / "stages.json").read_text())[0]
    assert stage["metric"] == "spearman"
    metrics = json.loads((students["transformer"] / "metrics.json").read_text())["metrics"]
    assert stage["best_score"] == pytest.approx(metrics["spearman"], abs=1e-6)


def test_a_teacher_is_scored_with_its_own_pooling_and_length(teacher: Path, pairs: Path, tmp_path: Path) -> None:
    short = shutil.copytree(teacher, tmp_path / "short")
    write_sentence_folder(short, Pooling(mode="mean", normalized=True), 32, 5)
    first, second = (by_hand(short, [row[side] for row in ROWS], 5) for side in ("text_a", "text_b"))
    expected = spearmanr((first * second).sum(1), [row["score"] for row in ROWS])[0]
    assert evaluate(short, [str(pairs)], NAMES).metrics["spearman"] == pytest.approx(expected, abs=1e-6)
    for name in ("modules.json", "sentence_bert_config.json"):
        (short / name).unlink()
    plain = evaluate(short, [str(pairs)], NAMES).metrics["pearson"]
    assert plain == pytest.approx(evaluate(teacher, [str(pairs)], NAMES).metrics["pearson"], abs=1e-6)


@pytest.mark.parametrize("kind", ["transformer", "bilstm"])
def test_the_library_loads_the_student_and_gives_the_same_embeddings(students: dict[str, Path], kind: str) -> None:
    library = pytest.importorskip("sentence_transformers")
    texts = [row["text_a"] for row in ROWS]
    model = library.SentenceTransformer(str(students[kind]), device="cpu")
    assert model.max_seq_length == 48
    assert np.allclose(model.encode(texts), by_hand(students[kind], texts), atol=1e-5)
    assert model.similarity_fn_name == "cosine"


@pytest.mark.slow
def test_the_library_loads_a_bilstm_without_lectern(students: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    code = f"""
import numpy, sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer({str(students["bilstm"])!r}, device="cpu", trust_remote_code=True)
numpy.save("found.npy", model.encode(["a lazy dog", "café"]))
assert "student_train" not in sys.modules
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True)
    expected = by_hand(students["bilstm"], ["a lazy dog", "café"])
    assert np.allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-5)


def test_keys_of_the_student_replace_the_teachers_pooling(dump: Path, tmp_path: Path) -> None:
    student = {**TRANSFORMER, "pooling": "cls", "normalize": False}
    distill.run(recipe(tmp_path / "out", student, *LOSSES, dump=dump), resume=False)
    folder = read_sentence_folder(str(tmp_path / "out"), LecternError)
    assert folder is not None
    assert folder.pooling == Pooling(mode="cls", normalized=False)


def test_a_student_of_a_dump_without_embeddings_is_saved_as_before(make_dump: Any, tmp_path: Path) -> None:
    out = make_dump("encoder", hidden="last", pooling="none")
    hidden = {"kind": "hidden", "teacher_layer": 2, "student_layer": -1}
    distill.run(recipe(tmp_path / "out", TRANSFORMER, hidden, dump=out), resume=False)
    assert not (tmp_path / "out" / "modules.json").exists()
    assert "library_name: transformers" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_that_was_killed_while_it_moved_its_files_is_finished(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = recipe(out, TRANSFORMER, *LOSSES, dump=dump)
    distill.run(asked, resume=False)
    wanted = (out / "1_Pooling" / "config.json").read_text()
    (out / "config.json").unlink()
    distill.run(asked, resume=True)
    assert (out / "1_Pooling" / "config.json").read_text() == wanted
    assert (out / "config.json").exists()


def test_the_command_line_prints_and_writes_the_scores(students: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    options = ["--task", "encoder", "--text-column", "text_a", "--pair-column", "text_b", "--score-column", "score"]
    command = ["eval", str(students["bilstm"]), "--data", str(pairs), *options, "--json", str(tmp_path / "scores.json")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "spearman" in result.output
    assert json.loads((tmp_path / "scores.json").read_text())["metrics"].keys() == {"spearman", "pearson"}


@pytest.mark.parametrize(
    ("rows", "columns", "error", "sentence"),
    [
        (ROWS, {"text_column": "text_a"}, UsageError, "scored on pairs of texts: name the columns of both"),
        (ROWS, {**COLUMNS, "score_column": "stars"}, CorpusError, "column 'stars' holds 'None', but a pair's score"),
        ([{**ROWS[0], "score": "high"}], COLUMNS, CorpusError, "line 1: column 'score' holds 'high', but"),
        ([{**ROWS[0], "score": True}], COLUMNS, CorpusError, "column 'score' holds 'True', but a pair's score is a"),
        ([ROWS[0], ROWS[0]], COLUMNS, UsageError, "the score of every pair is 4.5, so that no correlation"),
        (ROWS, {**COLUMNS, "group_column": "score"}, UsageError, "the group column 'score' is for tasks"),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused(
    teacher: Path, write_corpus: Any, tmp_path: Path, rows: Any, columns: dict[str, Any], error: Any, sentence: str
) -> None:
    path = write_corpus(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(error, match=sentence):
        evaluate(teacher, [str(path)], ScoredColumns(**columns))


def test_what_embeddings_do_not_have_is_refused(teacher: Path, pairs: Path, dump: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="encoder has no predictions that could agree with a teacher's"):
        evaluate(teacher, [str(pairs)], NAMES, dump)
    for task in ("encoder", None):
        with pytest.raises(UsageError, match="the task encoder has no logits to export"):
            export(teacher, tmp_path / "model.onnx", task, [], ColumnNames())
    assert not (tmp_path / "model.onnx").exists()


def run_of(tmp_path: Path, dump: Path, student: dict[str, Any], **sections: Any) -> Recipe:
    return recipe(tmp_path / "out", student, *LOSSES, dump=dump, **sections)


def test_recipes_that_cannot_work_are_refused(dump: Path, make_dump: Any, pairs: Path, tmp_path: Path) -> None:
    on_pairs = {"pairs": {"data": [str(pairs)], **COLUMNS}}
    with pytest.raises(ValidationError, match="give either share"):
        run_of(tmp_path, dump, TRANSFORMER, validation={**on_pairs, "share": 0.1})
    with pytest.raises(ValidationError, match=r"validation\.share\n.*greater than 0"):
        run_of(tmp_path, dump, TRANSFORMER, validation={"share": 0})
    with pytest.raises(RecipeError, match=r"validation\.metric: the metric 'loss' is not one of embeddings of pairs"):
        distill.run(run_of(tmp_path, dump, TRANSFORMER, validation={**on_pairs, "metric": "loss"}), resume=False)
    evaluated = {"data": [str(pairs)], "dump": str(dump), **COLUMNS}
    with pytest.raises(RecipeError, match=r"eval\.dump: encoder has no predictions"):
        distill.run(run_of(tmp_path, dump, TRANSFORMER, eval=evaluated), resume=False)
    classes = make_dump("sequence-classification")
    with pytest.raises(RecipeError, match=r"student\.pooling: the task sequence-classification has no embeddings"):
        distill.run(run_of(tmp_path, classes, {**TRANSFORMER, "pooling": "cls"}), resume=False)
    kl = recipe(tmp_path / "out", TRANSFORMER, {"kind": "kl"}, dump=classes, validation=on_pairs)
    with pytest.raises(RecipeError, match=r"validation\.pairs: the task sequence-classification has no embeddings"):
        distill.run(kl, resume=False)
    assert not (tmp_path / "out").exists()
