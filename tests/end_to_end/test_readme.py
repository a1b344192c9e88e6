"""The README's recipe is valid, and its commands are ones that exist."""

import re
from pathlib import Path

import pytest
import typer.main

from shared.dump.cli import app as shards
from student_train.cli import app as distill
from student_train.recipe.recipe import read_recipe
from student_train.sweep import read_sweep
from teacher_dump.cli import app as dump

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
APPS = {"dump": dump, "distill": distill, "shards": shards}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_recipes_are_valid(tmp_path: Path) -> None:
    found = []
    for block in blocks("toml")[:2]:
        (tmp_path / "recipe.toml").write_text(block)
        found.append(read_recipe(tmp_path / "recipe.toml", []))
    plain, staged = found
    assert [spec.label for spec in plain.loss] == ["kl", "hidden.6"]
    assert [stage.name for stage in staged.stage] == ["representation", "logits", "gold"]


def test_the_sweep_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _, sweep = blocks("toml")
    monkeypatch.chdir(tmp_path)
    Path("bilstm.toml").write_text(recipe)
    Path("bilstm-labels.toml").write_text(recipe.replace('"kl"', '"teacher-label"').replace("temperature = 2.0", ""))
    Path("sweep.toml").write_text(sweep)
    assert len(read_sweep(Path("sweep.toml")).runs) == 3 * 2 * 3 + 3 * 3


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/**/*.toml")), ids=lambda path: path.stem)
def test_every_recipe_and_sweep_of_the_repository_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if path.stem.startswith("sweep"):
        read_sweep(path)
    else:
        read_recipe(path, [])


@pytest.mark.parametrize("program", APPS)
def test_commands_and_options_exist(program: str) -> None:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    calls = [line.split() for line in lines if line.split()[:1] == [program]]
    assert calls
    command = typer.main.get_command(APPS[program])
    for _, *words in calls:
        called = command.commands[words[0]] if hasattr(command, "commands") else command
        known = {option for parameter in called.params for option in parameter.opts}
        used = {word for word in words if word.startswith("-")}
        assert used <= known, used - known


def test_just_lists_what_the_readme_runs() -> None:
    justfile = (ROOT / "Justfile").read_text(encoding="utf-8")
    for name in set(re.findall(r"just (\w+)", "\n".join(blocks("bash")))):
        assert re.search(rf"^{name}\b.*:", justfile, re.MULTILINE), name
