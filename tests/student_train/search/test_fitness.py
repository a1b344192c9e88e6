"""What candidates are compared by: values against plain references, and which one is chosen."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.dump.signals import SignalKey
from shared.errors import RecipeError
from student_train import distill
from student_train.data.batches import in_order
from student_train.data.needs import needs_of
from student_train.data.sources import DumpSource
from student_train.data.subsets import Split
from student_train.forward.observe import outputs_of, targets_of
from student_train.recipe.recipe import Recipe, read_recipe
from student_train.search.fitness import RIDGE, fitness_for, unexplained
from student_train.students import build_student


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    return read_recipe(folder / "recipe.toml", list(overrides))


def student_of(recipe: Recipe, source: DumpSource) -> Any:
    torch.manual_seed(0)
    return build_student(recipe.student, needs_of(recipe.student, source)).eval()


def test_the_unexplained_share_is_that_of_a_ridge_regression_on_the_other_half(folder: Path) -> None:
    source = DumpSource(folder / "dump")
    student, split, key = student_of(recipe_of(folder), source), Split(source, 0.6, 0), SignalKey("hidden", 3)
    halves: list[list[tuple[np.ndarray, np.ndarray]]] = [[], []]
    rows, seen = split.held_out("all"), 0
    for batch in in_order(rows, rows.columns_of({key}), 32, by_length=True):
        with torch.no_grad():
            states = outputs_of(student, batch, rows, wants_hidden=True).hidden_TD[-1].double().numpy()
        teacher = targets_of(batch, rows).vectors[key].decode(slice(0, len(states))).double().numpy()
        ends = batch.is_token_BL.sum(1).cumsum(0).tolist()
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            halves[seen % 2].append((states[start:end], teacher[start:end]))
            seen += 1
    shares = []
    for fitted, measured in ((0, 1), (1, 0)):
        own, teacher = (np.concatenate(part) for part in zip(*halves[fitted], strict=True))
        own = np.column_stack([own, np.ones(len(own))])
        square = own.T @ own
        linear = np.linalg.solve(square + RIDGE * np.diag(square).mean() * np.eye(len(square)), own.T @ teacher)
        own, teacher = (np.concatenate(part) for part in zip(*halves[measured], strict=True))
        errors = ((teacher - np.column_stack([own, np.ones(len(own))]) @ linear) ** 2).sum(0)
        shares.append((errors / ((teacher - teacher.mean(0)) ** 2).sum(0)).mean())
    assert unexplained(student, split, 3) == pytest.approx(np.mean(shares), rel=1e-6)


def test_a_student_that_has_the_teachers_states_explains_nearly_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = DumpSource(folder / "dump")
    split, student = Split(source, 0.6, 0), student_of(recipe_of(folder), source)
    before = unexplained(student, split, 4)

    def as_the_teacher(model: Any, batch: Any, rows: Any, wants_hidden: bool) -> Any:
        outputs = outputs_of(model, batch, rows, wants_hidden)
        teacher = targets_of(batch, rows).vectors[SignalKey("hidden", 4)]
        states = teacher.decode(slice(0, batch.tokens)) * 3 + 1
        return type(outputs)(None, (states,), lengths=outputs.lengths)

    monkeypatch.setattr("student_train.search.fitness.outputs_of", as_the_teacher)
    assert unexplained(student, split, 4) < 0.01 < 0.2 < before


def test_too_few_rows_are_refused(folder: Path) -> None:
    source = DumpSource(folder / "dump")
    student = student_of(recipe_of(folder), source)
    with pytest.raises(RecipeError, match="0 held-out rows are too few"):
        unexplained(student, Split(source, 1e-9, 0), 4)


@pytest.mark.parametrize(
    ("overrides", "name", "less_is_better"),
    [
        ([], "kl", True),
        (['loss=[{kind="hidden", map="last"}]'], "unexplained", True),
        (['loss=[{kind="hidden", map="last"}, {kind="gold"}]'], "kl", True),
        (['validation={metric="agreement"}'], "agreement", False),
        (['validation={metric="accuracy"}'], "accuracy", False),
        (['validation={metric="loss"}'], "kl", True),
    ],
)
def test_the_fitness_is_what_the_recipe_and_the_dump_have(
    overrides: list[str], name: str, less_is_better: bool, folder: Path
) -> None:
    recipe = recipe_of(folder, *overrides)
    source = distill.open_source(recipe)
    fitness = fitness_for(recipe, source)
    assert (fitness.name, fitness.less_is_better) == (name, less_is_better)
    assert fitness.merit(0.3) == (-0.3 if less_is_better else 0.3)
    score = fitness.measure(student_of(recipe, source), Split(source, 0.5, 0))
    assert score >= 0


def test_an_unknown_metric_is_refused(folder: Path) -> None:
    recipe = recipe_of(folder, 'validation={metric="f2"}')
    source = distill.open_source(recipe)
    with pytest.raises(RecipeError, match="the metric 'f2' is unknown"):
        fitness_for(recipe, source).measure(student_of(recipe, source), Split(source, 0.5, 0))
