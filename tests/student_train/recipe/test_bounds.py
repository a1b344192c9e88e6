"""Values of recipes that no training can have: each is refused by its key, on the command line too."""

from pathlib import Path
from typing import Any

import pytest

from shared.errors import RecipeError
from student_train.recipe.recipe import read_recipe

RECIPE = """
output = "out"
dump = "dump"
[student]
kind = "transformer"
layers = 1
hidden_size = 16
heads = 2
[training]
epochs = 2
[validation]
[[stage]]
name = "first"
loss = [{ kind = "kl" }]
"""
NUMBERS = ("inf", "-inf", "nan", "-1", "0", "1e999", '"x"', "[]", "1979-05-27")
ODD = {
    "training.epochs": (*NUMBERS, "1e300"),
    "training.seed": ("-1", "4294967296", "1" + "0" * 30, "1.5", "inf"),
    "training.batch_size": (*NUMBERS, "1000000000000000000"),
    "training.gradient_accumulation": (*NUMBERS, "100000", "1000000000000000000"),
    "training.learning_rate": (*NUMBERS, "1e30"),
    "training.weight_decay": ("inf", "nan", "-1", "1e300"),
    "training.max_grad_norm": ("inf", "nan", "-1", "0", "1e300", "1e-300"),
    "training.warmup": ("inf", "nan", "-1", "1"),
    "training.save_steps": NUMBERS,
    "training.log_steps": NUMBERS,
    "validation.every": NUMBERS,
    "validation.every_steps": (*NUMBERS, "1000000000000000000"),
    "validation.patience": NUMBERS,
    "validation.share": ("inf", "nan", "-1", "0", "1"),
    "stage.0.loss.0.weight": ("inf", "nan", "-1", "0", "1e300", "1e-300"),
    "stage.0.loss.0.temperature": ("inf", "nan", "-1", "0", "1e300", "1e-300"),
    "stage.0.name": ("stages.json", "a.safetensors", "a.tmp", "../other", "a/b", "x" * 300, "a\\u0000b", "", ".hidden"),
    "student.dropout": ("inf", "nan", "1"),
    "student.hidden_size": (*NUMBERS, "1" + "0" * 300),
    "stage.-1.name": ("other",),
    "stage.0.loss.-1.weight": ("2",),
    "stage.x.name": ("other",),
    "output": ("", " "),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in ODD.items() for value in values])
def test_a_value_that_no_training_can_have_is_refused_with_its_key(key: str, value: str, file: Path) -> None:
    text = f'"{value}"' if key in ("stage.0.name", "output") else value
    with pytest.raises(RecipeError, match=key) as raised:
        read_recipe(file, [f"{key}={text}"])
    assert "\n" not in str(raised.value)
    assert not str(raised.value).endswith("..")
    assert len(str(raised.value)) < 500


def test_stages_whose_names_differ_in_case_alone_are_refused(file: Path) -> None:
    file.write_text(RECIPE + '[[stage]]\nname = "FIRST"\nloss = [{ kind = "kl" }]\n')
    with pytest.raises(RecipeError, match=r"stage\.1\.name = 'FIRST': another stage has this name"):
        read_recipe(file, [])


def test_a_key_without_a_value_is_unset(file: Path) -> None:
    recipe: Any = read_recipe(file, ["training.epochs=", "training.max_steps=3"])
    assert (recipe.training.epochs, recipe.training.max_steps) == (None, 3)
    assert read_recipe(file, ["stage.0.loss.0=", 'stage.0.loss=[{kind = "gold"}]']).stage[0].loss[0].kind == "gold"
    with pytest.raises(RecipeError, match=r"give either epochs or max_steps \(on the command line, --set"):
        read_recipe(file, ["training.max_steps=3"])
    with pytest.raises(RecipeError, match="'output' is missing"):
        read_recipe(file, ["output="])


@pytest.mark.parametrize("key", ["training.epoch", "stage.0.epochs", "stage.3", "stage.-1", "data.train", "evil.x.y"])
def test_what_is_not_there_cannot_be_unset(key: str, file: Path) -> None:
    with pytest.raises(RecipeError, match=f"does not give the key '{key}', so there is nothing to unset"):
        read_recipe(file, [f"{key}="])


def test_unsetting_creates_no_section(file: Path) -> None:
    file.write_text(RECIPE.replace("[validation]\n", ""))
    with pytest.raises(RecipeError, match=r"'validation\.every'"):
        read_recipe(file, ["validation.every="])
    assert read_recipe(file, []).validation is None


def test_a_width_that_is_no_multiple_of_the_heads_is_one_sentence(file: Path) -> None:
    with pytest.raises(RecipeError, match=r"make it a multiple of the heads\.$"):
        read_recipe(file, ["student.heads=3"])
