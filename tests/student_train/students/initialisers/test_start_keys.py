"""The key `start` of a recipe."""

from pathlib import Path
from typing import Any

import pytest

from shared.errors import RecipeError
from student_train.recipe.recipe import overridden, read_recipe
from tests.student_train.runs import KL, recipe

SMALL = {"kind": "transformer", "layers": 1, "hidden_size": 16, "heads": 2}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            'start = {kind = "extrakt"}',
            r"student\.start\.kind = 'extrakt': the valid ones are 'random', 'layers', 'ext",
        ),
        ("start = {by = 'random'}", r"the key 'student\.start\.kind' is missing"),
        ('start = {kind = "extract"}', r"the key 'student\.start\.by' is missing"),
        ('start = {kind = "extract", by = "luck"}', r"student\.start\.by = 'luck': .*'random' or 'importance'"),
        ('start = {kind = "squeeze", by = "random", rank = 3}', r"unknown key 'student\.start\.rank'.*by, kind"),
        ('start = {kind = "factorise", rank = 0}', r"student\.start\.rank = 0"),
        ('start = {kind = "layers", numbers = [3, 1]}', r"student\.start\.numbers.* strictly increasing"),
        ('start = {kind = "layers", numbers = []}', r"student\.start\.numbers is empty"),
        ('embeddings = "svd"\nstart = {kind = "layers"}', r"embeddings = 'svd': with start\.kind = 'layers'"),
        ('max_positions = 9\nstart = {kind = "layers"}', r"max_positions = 9: with start\.kind = 'layers'"),
        ('start = "extract"', r"student\.start = 'extract'"),
    ],
)
def test_its_keys_are_checked(keys: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    student = f'kind = "transformer"\nlayers = 1\nhidden_size = 16\nheads = 2\n{keys}'
    file.write_text(
        f'output = "x"\ndump = "y"\n[student]\n{student}\n[[loss]]\nkind = "kl"\n[training]\nmax_steps = 1\n'
    )
    with pytest.raises(RecipeError, match=message):
        read_recipe(file, [])


def test_a_start_can_be_set_on_the_command_line(tmp_path: Path) -> None:
    made = recipe(tmp_path, SMALL, KL, dump=tmp_path / "dump")
    changed: Any = overridden(made, ['student.start={kind = "extract", by = "random"}'])
    assert changed.student.start.by == "random"
    assert made.student.model_dump()["start"] == {"kind": "random"}
