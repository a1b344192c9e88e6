"""`distill compare`: one table of models on several tasks, from the scores that lie in their folders."""

import json
import statistics
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from shared.errors import UsageError
from student_train.cli import app
from student_train.comparison.output import lines
from student_train.comparison.scores import compare


def score(folder: Path, value: float, metric: str = "accuracy", rows: int = 100, **entries: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"metrics": {metric: value, "macro_f1": value / 2}, "rows": rows, "parameters": 1000, "questions": None}
    (folder / "metrics.json").write_text(json.dumps(content | entries))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """minilm with three seeds of two tasks, scratch with one of each, and a teacher of one task alone."""
    for seed, (first, second) in enumerate([(0.8, 0.5), (0.82, 0.56), (0.9, 0.5)]):
        score(tmp_path / "minilm" / "sst2" / f"seed-{seed}", first)
        score(tmp_path / "minilm" / "trec" / f"seed-{seed}", second, parameters=1200)
    score(tmp_path / "scratch" / "sst2", 0.7)
    score(tmp_path / "scratch" / "trec", 0.4)
    score(tmp_path / "teacher" / "sst2", 0.95, parameters=90_000)
    (tmp_path / "minilm" / "checkpoints").mkdir()
    return tmp_path


def test_means_over_seeds_and_over_tasks(models: Path) -> None:
    found = compare([models / name for name in ("scratch", "teacher", "minilm")])
    assert dict(found.metrics) == {"sst2": "accuracy", "trec": "accuracy"}
    minilm, scratch, teacher = found.models
    assert [minilm.name, scratch.name, teacher.name] == ["minilm", "scratch", "teacher"]
    assert minilm.scores["sst2"].mean == pytest.approx(0.84)
    assert minilm.scores["sst2"].deviation == pytest.approx(statistics.stdev([0.8, 0.82, 0.9]))
    assert minilm.mean == pytest.approx((0.84 + 0.52) / 2)
    assert minilm.deviation == pytest.approx(statistics.stdev([0.65, 0.69, 0.7]))
    assert minilm.parameters == 1200
    assert (scratch.mean, scratch.deviation, scratch.scores["sst2"].deviation) == (pytest.approx(0.55), None, None)
    assert (teacher.mean, teacher.scores["sst2"].mean) == (None, 0.95)


def test_the_mean_has_no_deviation_where_tasks_have_other_seeds(models: Path) -> None:
    (models / "minilm" / "trec" / "seed-2" / "metrics.json").unlink()
    (model,) = compare([models / "minilm"]).models
    assert model.mean == pytest.approx((0.84 + 0.53) / 2)
    assert model.deviation is None
    assert model.scores["trec"].deviation is not None


def test_the_table_reads_as_a_table(models: Path) -> None:
    shown = lines(compare([models / name for name in ("scratch", "teacher", "minilm")]))
    assert shown[0].split() == ["model", "parameters", "sst2", "(accuracy)", "trec", "(accuracy)", "mean"]
    assert shown[2].split() == [
        "minilm",
        "1,200",
        "0.8400",
        "±",
        "0.0529",
        "0.5200",
        "±",
        "0.0346",
        "0.6800",
        "±",
        "0.0265",
    ]
    assert shown[3].split() == ["scratch", "1,000", "0.7000", "0.4000", "0.5500"]
    assert shown[4].split() == ["teacher", "90,000", "0.9500"]
    assert shown[5].startswith("(A mean is only of models with scores on all tasks")


def test_chosen_tasks_and_metrics(models: Path) -> None:
    found = compare([models / "minilm", models / "teacher"], tasks=["sst2"], chosen=["sst2=macro_f1"])
    assert dict(found.metrics) == {"sst2": "macro_f1"}
    assert [(model.name, model.mean) for model in found.models] == [("teacher", 0.475), ("minilm", pytest.approx(0.42))]


def test_of_perplexities_the_lowest_comes_first_and_a_mean_with_others_means_nothing(tmp_path: Path) -> None:
    for name, value in (("a", 30.0), ("b", 20.0)):
        score(tmp_path / name / "lm", value, "perplexity")
    folders = [tmp_path / "a", tmp_path / "b"]
    assert [model.name for model in compare(folders).models] == ["b", "a"]
    for folder in folders:
        score(folder / "sst2", 0.5)
    assert [model.mean for model in compare(folders).models] == [None, None]


def test_questions_count_and_not_the_windows_of_their_contexts(tmp_path: Path) -> None:
    score(tmp_path / "a" / "squad", 0.5, rows=120, questions=100)
    score(tmp_path / "b" / "squad", 0.4, rows=140, questions=100)
    assert len(compare([tmp_path / "a", tmp_path / "b"]).models) == 2


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for parent in ("x", "y"):
        score(tmp_path / parent / "minilm" / "sst2", 0.5)
    folders = [tmp_path / parent / "minilm" for parent in ("x", "y")]
    assert [model.name for model in compare(folders).models] == [str(folder) for folder in folders]


def test_the_command_writes_csv_json_and_a_plot(models: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [models / name for name in ("out.csv", "out.json", "out.png")]
    arguments = [str(models / "minilm"), str(models / "teacher"), "--csv", str(files[0]), "--json", str(files[1])]
    result = CliRunner().invoke(app, ["compare", *arguments, "--plot", str(files[2])])
    assert result.exit_code == 0, result.output
    assert "0.6800 ± 0.0265" in result.output
    table = pl.read_csv(files[0])
    assert table["model"].to_list() == ["minilm", "teacher"]
    assert table["sst2.accuracy"].to_list() == [pytest.approx(0.84), 0.95]
    assert table["trec.seeds"].to_list() == [3, None]
    assert table["mean"].to_list() == [pytest.approx(0.68), None]
    content = json.loads(files[1].read_text())
    assert content["models"][0]["scores"]["sst2"]["by_seed"] == {"seed-0": 0.8, "seed-1": 0.82, "seed-2": 0.9}
    assert content["models"][1]["scores"]["sst2"]["by_seed"] == {}
    assert files[2].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda m: None, {"tasks": ["mrpc"]}, r"minilm: it has no scores of mrpc"),
        (lambda m: None, {"chosen": ["mrpc=f1"]}, r"'mrpc': no model has scores on this task; they have sst2, trec"),
        (lambda m: None, {"chosen": ["sst2"]}, r"--metric 'sst2': name a task and a metric"),
        (lambda m: None, {"chosen": ["sst2=mcc"]}, r"--metric .*=mcc: .*metrics\.json has accuracy, macro_f1"),
        (lambda m: score(m / "scratch" / "sst2", 0.5, rows=99), {}, r"accuracy of 99 rows, but .*minilm/sst2 has acc"),
        (lambda m: score(m / "scratch" / "sst2", 0.5, "f1"), {}, r"f1 of 100 rows, but .* score both on the same"),
        (lambda m: score(m / "minilm" / "sst2" / "seed-1", 0.5, rows=9), {}, r"seed-1/metrics\.json: accuracy of 9"),
        (lambda m: (m / "scratch/sst2/metrics.json").write_text("{"), {}, r"scratch/sst2/metrics\.json: it holds no"),
        (lambda m: score(m / "scratch" / "sst2", 0.5, metrics={"accuracy": "high"}), {}, r"it holds no scores"),
        (lambda m: score(m / "scratch" / "sst2", float("nan")), {}, r"it holds no scores"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(change: Any, options: Any, message: str, models: Path) -> None:
    change(models)
    with pytest.raises(UsageError, match=message):
        compare([models / "minilm", models / "scratch"], **options)


def test_a_folder_without_scores_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"it has no scores .*distill eval .*/TASK --data FILE --json"):
        compare([tmp_path])
    with pytest.raises(UsageError, match="there is no such folder"):
        compare([tmp_path / "nowhere"])


def test_bad_files_are_refused_before_anything_is_shown(models: Path) -> None:
    result = CliRunner().invoke(app, ["compare", str(models / "minilm"), "--csv", str(models / "nowhere" / "x.csv")])
    assert isinstance(result.exception, UsageError)
    assert "there is no folder" in str(result.exception)
    assert result.output == ""
