"""The demo without its minutes of training: its recipes are fair, commands run once and in order, output is clear."""

import importlib.util
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from student_train.recipe.recipe import read_recipe

RECIPES = Path(__file__).parents[2] / "recipes" / "docstrings"
METRICS = {"metrics": {"accuracy": 0.6}, "agreement": 0.7, "parameters": 3_000_000, "latency_ms": {"1": 1.2}}


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The demo script, running in a folder of its own."""
    spec = importlib.util.spec_from_file_location("demo", RECIPES / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    monkeypatch.setattr(module, "explanation", lambda: "")
    return module


@pytest.fixture
def commands(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that the demo runs; each one only creates the files that the demo checks for."""
    ran: list[str] = []

    def run(command: str) -> None:
        ran.append(command)
        words = shlex.split(command)
        if "make_corpus.py" in command:
            demo.DATA.mkdir(parents=True)
            (demo.DATA / "test.jsonl").touch()
        elif words[0] == "mv":
            Path(words[1]).rename(words[2])
        elif words[:2] == ["distill", "run"]:
            output = read_recipe(RECIPES / Path(words[2]).name, []).output
            output.mkdir(parents=True)
            (output / "metrics.json").write_text(json.dumps(METRICS), encoding="utf-8")
            (output / "config.json").touch()

    monkeypatch.setattr(demo, "run", run)
    return ran


def test_the_teacher_leaves_after_both_dumps_and_before_the_first_student(
    demo: ModuleType, commands: list[str]
) -> None:
    demo.main()
    kinds = [" ".join(command.split()[: 2 if command.startswith("distill") else 1]) for command in commands]
    assert kinds == ["python", "distill run", "dump", "dump", "mv"] + ["distill run"] * 6
    assert not demo.TEACHER.exists()


def test_a_second_run_does_nothing_but_show_the_results(
    demo: ModuleType, commands: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    demo.main()
    commands.clear()
    capsys.readouterr()
    demo.main()
    assert commands == []
    assert "transformer 1 x 64" in capsys.readouterr().out
    assert demo.PLOT.stat().st_size > 0


def test_the_table_is_aligned_and_fits_a_terminal(demo: ModuleType) -> None:
    student, teacher = demo.Scores(0.6, 0.7, 3_050_000, 1.2), demo.Scores(0.65, 1.0, 22_717_066, 123.45)
    lines = demo.table(teacher, dict.fromkeys(demo.STUDENTS.values(), (student, student)))
    assert max(map(len, lines)) <= 100
    ends = {line.index("%") for line in lines if "%" in line}
    assert len(ends) == 1
    assert any("7.4 x" in line for line in lines)


@pytest.mark.parametrize("student", ["bilstm", "small", "tiny"])
def test_a_baseline_differs_from_its_student_in_what_it_learns_from_alone(student: str) -> None:
    taught, alone = (read_recipe(RECIPES / f"{name}.toml", []) for name in (student, f"{student}-labels"))
    assert taught.student == alone.student
    assert taught.eval == alone.eval
    assert taught.training.learning_rate == alone.training.learning_rate
    assert taught.data is None
    assert alone.dump is None
