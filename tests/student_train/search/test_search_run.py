"""A small search over layer maps by the command line, to the end, with students that are really trained."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from student_train import cli, distill
from student_train.recipe.recipe import read_recipe


@pytest.mark.usefixtures("_quick")
def test_a_small_search_to_the_end(folder: Path, tmp_path: Path) -> None:
    """Two generations of four; the recipe is scored on gold labels in the end, and its best map is a recipe."""
    out = tmp_path / "out"
    given = ["--population", "4", "--generations", "2", "--steps", "4", "--random-maps", "0", "--confirm-seeds", "1"]
    given += ["--out", str(out), "--json", f"{out}.json", "--set", f'eval={{data=["{folder}/rows.jsonl"]}}']
    arguments = ["search-mapping", str(folder / "recipe.toml"), *given]
    dry = CliRunner().invoke(cli.app, [*arguments, "--dry-run"], catch_exceptions=False)
    assert "2 layers of the student, the teacher's layers 1, 2, 3, 4: 24 maps, compared by the loss" in dry.output
    assert not out.exists()
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    written = json.loads(Path(f"{out}.json").read_text())
    assert len(written["generations"]) == 2
    for one in written["maps"]:
        assert f"{' '.join(map(str, one['map']))}  " in result.output
        assert len(one["confirmed"]) == 1
        assert 0 <= one["eval"][0] <= 1
    assert "accuracy" in result.output
    assert "one seed cannot tell" in result.output
    assert "times those of one full training), " in result.output
    evaluations = [json.loads(file.read_text()) for file in (out / "evaluations").iterdir()]
    assert written["cost"]["steps"] == sum(one["steps"] for one in evaluations)
    assert all(one["cpu_seconds"] > 0 for one in evaluations)
    assert (out / "search.png").stat().st_size > 10_000
    assert not list((out / "runs").iterdir())
    best = read_recipe(out / "best.toml", [])
    assert list(best.loss[1].map) == written["best"]["map"]
    assert best.output == folder / "student"
    trained = distill.run(
        read_recipe(out / "best.toml", [f'output="{out}/runs/best"', "eval=", "training.epochs=0.2"]), False
    )
    assert trained.steps >= 1
