"""An unfinished run goes on with its own recipe, whatever the order of the keys in the file that tells it."""

import json
from pathlib import Path

import pytest

from shared.errors import RecipeError
from student_train.recipe.recipe import Recipe
from student_train.training.journal import Journal, recipe_json


@pytest.fixture
def begun(tmp_path: Path) -> Recipe:
    """The recipe of a run of which a stage has ended."""
    recipe = Recipe.model_validate(
        {
            "output": tmp_path,
            "data": {"task": "sequence-classification", "train": ["train.csv"]},
            "student": {"kind": "pretrained", "path": "model"},
            "loss": [{"kind": "gold"}],
            "training": {"max_steps": 3},
        }
    )
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "stages.json").write_text(
        json.dumps([{"name": "training", "steps": 3, "seconds": 1.0, "cpu_seconds": 1.0}])
    )
    (tmp_path / "recipe.json").write_text(recipe_json(recipe))
    return recipe


def test_a_run_of_the_same_recipe_goes_on_in_whatever_order_its_keys_were_written(begun: Recipe) -> None:
    file = begun.output / "recipe.json"
    content = json.loads(file.read_text())
    content["data"] = dict(reversed(content["data"].items()))
    file.write_text(json.dumps(content))
    Journal(begun).open(resume=True)


@pytest.mark.parametrize("written", ["", "the other run's", "{}"])
def test_a_run_of_another_recipe_is_refused(written: str, begun: Recipe) -> None:
    (begun.output / "recipe.json").write_text(written)
    with pytest.raises(RecipeError, match="has another recipe"):
        Journal(begun).open(resume=True)
