"""`distill sweep` as a command, on dumps of a tiny teacher: failures, interruptions, and the files that it writes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from shared.errors import DumpError, LecternError, RecipeError, UsageError
from shared.storage.files import only_one
from student_train import sweep as sweeps
from student_train.sweep import children
from student_train.sweep.folder import check_output, check_run
from tests.student_train.forked import Forked

TASK = "sequence-classification"
RECIPE = """
output = "unused"
dump = "{folder}/good"

[student]
kind = "bilstm"
embedding_size = 8
hidden_size = 8

[[loss]]
kind = "kl"

[training]
max_steps = 3
batch_size = 8
learning_rate = 1e-2
device = "cpu"

[eval]
data = ["{folder}/rows.jsonl"]
dump = "{folder}/good"
"""
PATIENCE_SECONDS = 600


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_teacher: Callable[..., Path],
    make_dump: Callable[..., Path],
    write_corpus: Callable[..., Path],
    toy_rows: Callable[..., list[dict[str, Any]]],
) -> Path:
    """A teacher, its dump, a damaged copy of that, and a recipe."""
    made = tmp_path_factory.mktemp("sweep")
    shutil.copytree(make_teacher(TASK), made / "teacher")
    data = write_corpus(made / "rows.jsonl", toy_rows(TASK))
    make_dump(TASK, teacher=made / "teacher", data=data, out=made / "good")
    shutil.copytree(made / "good", made / "damaged")
    shard = min((made / "damaged" / "shards").glob("*.parquet"))
    content = bytearray(shard.read_bytes())
    content[40:200] = bytes(160)  # a page; the footer, which is all that is read before the first step, is whole
    shard.write_bytes(content)
    (made / "base.toml").write_text(RECIPE.format(folder=made))
    return made


def write_sweep(folder: Path, name: str, content: str) -> Path:
    file = folder / f"{name}.toml"
    file.write_text(f'output = "{folder}/{name}"\nrecipe = "{folder}/base.toml"\n{content}')
    return file


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children.subprocess, "Popen", Forked)


def sweep(file: Path, jobs: int | None = None) -> sweeps.Outcome:
    return sweeps.run(sweeps.read_sweep(file), jobs)


def attempts(output: Path) -> dict[str, int]:
    return {path.stem: json.loads(path.read_text())["attempts"] for path in (output / "logs").glob("*.json")}


@pytest.mark.usefixtures("_quick")
def test_a_sweep_with_failing_runs_compares_the_others_and_tries_again(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    """Two widths, a good and a damaged dump; then the damaged one is repaired."""
    made = write_sweep(
        folder,
        "failing",
        f"""
        jobs = 2
        [grid]
        "student.hidden_size" = [8, 16]
        dump = ["{folder}/good", "{folder}/damaged"]
        [baselines]
        teacher = "{folder}/teacher"
        """,
    )
    output = folder / "failing"
    outcome = sweep(made)
    printed = capsys.readouterr().err
    assert set(outcome.failed) == {"hidden_size=8_dump=damaged", "hidden_size=16_dump=damaged"}
    assert all("damaged" in reason and "Traceback" not in reason for reason in outcome.failed.values())
    assert f"hidden_size=8_dump=damaged: failed: {outcome.failed['hidden_size=8_dump=damaged']}" in printed
    with pytest.raises(LecternError, match=r"2 failed: .*the same command tries them again") as raised:
        sweeps.check_outcome(outcome)
    assert raised.value.exit_code == 1
    assert sum("hidden_size=" in line or "teacher" in line for line in outcome.lines) == 3

    found = pl.read_parquet(output / "results.parquet")
    assert found.equals(pl.read_csv(output / "results.csv", schema_overrides=found.schema))
    runs = found.filter(pl.col("learnt_from") == "dump")
    assert runs["state"].to_list() == ["done", "failed", "done", "failed"]
    assert runs["student.hidden_size"].to_list() == [8, 8, 16, 16]
    assert runs["dump"].to_list() == [f"{folder}/good", f"{folder}/damaged"] * 2
    for row in runs.filter(pl.col("state") == "done").iter_rows(named=True):
        metrics = json.loads((Path(row["folder"]) / "metrics.json").read_text())
        assert row["metric"] == "accuracy"
        assert row["score"] == row["accuracy"] == metrics["metrics"]["accuracy"]
        assert row["macro_f1"] == metrics["metrics"]["macro_f1"]
        assert row["parameters"] == metrics["parameters"]
        assert row["latency_ms.32"] == metrics["latency_ms"]["32"]
        assert row["agreement"] == metrics["agreement"]
        assert row["training.seed"] == 0
        assert row["cpu_seconds"] > 0
    (baseline,) = found.filter(pl.col("learnt_from") == "baseline").iter_rows(named=True)
    assert baseline["agreement"] == pytest.approx(1.0, abs=0.01)
    assert (output / "pareto.png").exists()

    shutil.rmtree(folder / "damaged")
    shutil.copytree(folder / "good", folder / "damaged")
    assert sweep(made, jobs=1).failed == {}
    assert set(pl.read_csv(output / "results.csv")["state"]) == {"done"}
    assert attempts(output) == {
        "hidden_size=8_dump=good": 1,
        "hidden_size=16_dump=good": 1,
        "hidden_size=8_dump=damaged": 2,
        "hidden_size=16_dump=damaged": 2,
        "baseline-teacher": 1,
    }


def test_a_stopped_sweep_leaves_no_process_and_goes_on(folder: Path, request: pytest.FixtureRequest) -> None:
    made = write_sweep(folder, "stopped", '[grid]\n"training.max_steps" = [200]\n"training.save_steps" = [20]\n')
    output = folder / "stopped"
    (run,) = sweeps.read_sweep(made).runs
    command = [sys.executable, "-m", "student_train.cli", "sweep", str(made)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not list((run.recipe.output / "checkpoints").glob("*/checkpoint-*/trainer_state.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGTERM)
    assert "interrupted; finished work is kept" in process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(child), 0)
    assert not (run.recipe.output / "config.json").exists()

    request.getfixturevalue("_quick")
    assert sweep(made).failed == {}
    assert attempts(output) == {run.name: 2}
    assert (run.recipe.output / "config.json").exists()


def test_what_cannot_work_is_refused_before_anything_starts(folder: Path) -> None:
    def refused(content: str) -> None:
        made = sweeps.read_sweep(write_sweep(folder, "refused", content))
        for call in (sweeps.run, sweeps.describe):
            call(made, None)

    for content, error, message in (
        (f'[grid]\ndump = ["{folder}/good", "{folder}/none"]', DumpError, "run dump=none: .*none"),
        ('seeds = [1]\n[baselines]\nteacher = "nowhere"', RecipeError, r"baselines\.teacher = 'nowhere'"),
        ('[grid]\n"loss.0.kind" = ["kl", "logits-mse", "relations"]', RecipeError, "run kind=relations: "),
    ):
        with pytest.raises(error, match=message):
            refused(content)
    assert not (folder / "refused").exists()


def test_the_dry_run_lists_runs_with_their_parameters(folder: Path) -> None:
    made = write_sweep(folder, "listed", 'seeds = [0, 1]\n[grid]\n"student.hidden_size" = [8, 16]')
    lines = sweeps.describe(sweeps.read_sweep(made), jobs=1)
    assert len(lines) == 5
    small, again, large, _, last = lines
    assert small.startswith("hidden_size=8_seed=0 ")
    assert small.endswith("parameters  to do")
    parameters = [int(line.split()[1].replace(",", "")) for line in (small, again, large)]
    assert parameters[0] == parameters[1] < parameters[2]
    assert last.startswith("4 runs, 4 to do: 1 at a time on the CPU")
    assert not (folder / "listed").exists()


def test_a_student_of_another_recipe_is_in_the_way(folder: Path) -> None:
    made = sweeps.read_sweep(write_sweep(folder, "changed", "seeds = [0]"))
    run = made.runs[0]
    run.recipe.output.mkdir(parents=True)
    other = run.recipe.model_copy(update={"output": Path("elsewhere")})
    record = run.recipe.output / "recipe.json"
    record.write_text(other.model_dump_json(by_alias=True))
    check_run(run)
    training = run.recipe.training.model_copy(update={"learning_rate": 0.5})
    record.write_text(run.recipe.model_copy(update={"training": training}).model_dump_json(by_alias=True))
    with pytest.raises(RecipeError, match=r"another recipe \(training.learning_rate was 0.5 and is 0.01\); delete"):
        sweeps.run(made, None)


def test_a_folder_is_for_one_sweep_at_a_time(folder: Path) -> None:
    made = sweeps.read_sweep(write_sweep(folder, "held", "seeds = [0]"))
    (folder / "held").mkdir()
    with only_one(folder / "held"), pytest.raises(UsageError, match="another run is at work"):
        sweeps.run(made, None)


@pytest.mark.parametrize("output", ["", " ", "taken", "link"])
def test_a_sweep_writes_to_an_empty_folder_or_its_own(output: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "README.md").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    place = str(tmp_path / output) if output.strip() else output
    file = write_sweep(folder, "elsewhere", "seeds = [0]")
    file.write_text(file.read_text().replace(f"{folder}/elsewhere", place))
    with pytest.raises((RecipeError, UsageError), match=r"name a folder|holds other files|symbolic link"):
        sweep(file, 1)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["README.md"]


LOG = "$ python -m student_train.cli run recipe.toml\n"


@pytest.mark.parametrize(
    ("files", "is_a_sweeps"),
    [
        ({"logs/app.log": "started", "runs/notes.txt": "mine"}, False),
        ({"logs/shell.log": "$ ls\n", "baselines/a.json": "{}"}, False),
        ({"runs/a/recipe.json": "{}"}, False),
        ({"logs/a.log": "", "runs/a/student": "mine"}, False),
        ({"logs/a.log": ""}, True),  # a sweep that was killed before the first line of its first log
        ({"logs/a.log": LOG, "runs/a/recipe.json.tmp": "{"}, True),
        ({"runs/a/recipe.json": '{"output": "a", "student": {}, "training": {}}', "notes.txt": "mine"}, True),
    ],
)
def test_a_folder_is_a_sweeps_if_it_holds_what_only_a_sweep_writes(
    files: dict[str, str], is_a_sweeps: bool, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    with nullcontext() if is_a_sweeps else pytest.raises(UsageError, match="holds other files"):
        check_output(tmp_path)
