"""The public face `lectern` does what the command lines do. (test_examples.py runs its examples.)"""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import lectern
import shared.progress
from student_train.recipe.recipe import Recipe
from teacher_dump.cli import app as dump_command
from teacher_dump.request import Request


def test_dump_makes_the_bytes_of_the_command_line(workplace: Path) -> None:
    lectern.dump("models/teacher", "sequence-classification", "reviews.jsonl", "a", hidden="last", max_length=32)
    words = "--teacher models/teacher --task sequence-classification --data reviews.jsonl --out b --hidden last"
    result = CliRunner().invoke(dump_command, [*words.split(), "--max-length", "32"])
    assert result.exit_code == 0, result.output
    files = sorted(path.relative_to("a") for path in Path("a").rglob("*") if path.is_file())
    assert Path("shards/00000.parquet") in files
    assert all((Path("a") / file).read_bytes() == (Path("b") / file).read_bytes() for file in files)


def test_dump_names_its_options(workplace: Path) -> None:
    signature = inspect.signature(lectern.dump)
    assert signature.parameters["hidden"].default == "none"
    assert {*inspect.signature(Request).parameters} <= {*signature.parameters}
    with pytest.raises(TypeError, match=r"no option 'hiden'; its options are .*hidden"):
        lectern.dump("models/teacher", "encoder", "reviews.jsonl", "c", hiden="last")


def test_a_recipe_made_in_python_trains_the_student_of_a_file(workplace: Path) -> None:
    lectern.dump("models/teacher", "sequence-classification", "reviews.jsonl", "reviews")
    lectern.distill("bilstm.toml", set={"output": "from-file", "training.seed": 3})
    content = {
        "output": "from-python",
        "dump": "reviews",
        "student": {"kind": "bilstm", "embedding_size": 8, "hidden_size": 8},
        "loss": [{"kind": "kl"}],
        "training": {"max_steps": 3, "batch_size": 8, "device": "cpu"},
    }
    result = lectern.distill(Recipe.model_validate(content), set={"training.seed": 3})
    assert result.steps == 3
    weights = [(Path(folder) / "model.safetensors").read_bytes() for folder in ("from-file", "from-python")]
    assert weights[0] == weights[1]
    recipes = [json.loads((Path(folder) / "recipe.json").read_text()) for folder in ("from-file", "from-python")]
    assert [each.pop("output") for each in recipes] == ["from-file", "from-python"]
    assert recipes[0] == recipes[1]


def test_a_bar_is_shown_in_a_notebook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(__import__("sys").modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert shared.progress.in_notebook()
    with shared.progress.Progress("dump", "tokens", 10) as progress:
        progress.advance(10)
    assert "10/10" in capsys.readouterr().err
    shell.config.clear()
    assert not shared.progress.in_notebook()
