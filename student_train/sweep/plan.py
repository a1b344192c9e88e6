"""From a sweep file to its runs: the product of variants, grid and seeds, each of which is a checked recipe."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from shared.errors import RecipeError
from shared.validation import in_words
from student_train.recipe.recipe import Recipe, read_recipe, read_toml
from student_train.recipe.sections import OutputFolder, Section
from student_train.sweep.names import name_of, override

SEED = "training.seed"
RUNS = "runs"

# Each of them is read and checked before the first one starts.
MOST_RUNS = 10_000

Values = Annotated[tuple[Any, ...], Field(min_length=1)]
# Names become names of files. The underscores of a run's name are between its parts.
VariantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$", max_length=100)]
BaselineName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+()=,-]*$", max_length=100)]


class Variant(Section):
    """[[variant]]: a named alternative.

    Attributes:
        recipe: replaces the recipe of the sweep.
        set: overrides keys of the recipe.
        skip: keys of the grid that do not vary here (for instance the temperature, for a student of labels alone).
    """

    name: VariantName
    recipe: Path | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    skip: tuple[str, ...] = ()


class SweepSpec(Section):
    """A sweep file. Its paths, like those of recipes, are relative to the current directory of the command.

    Attributes:
        set: overrides keys of the recipes of all runs; what a variant sets takes precedence.
    """

    output: OutputFolder
    recipe: Path | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    jobs: Literal["auto"] | int = "auto"
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    grid: Annotated[dict[str, Values], Field(min_length=1)] | None = None
    variant: tuple[Variant, ...] = ()
    baselines: dict[BaselineName, Path] = Field(default_factory=dict)

    @field_validator("jobs", mode="before")
    @classmethod
    def _a_number_of_jobs(cls, jobs: Any) -> Any:
        if jobs != "auto" and not (type(jobs) is int and jobs > 0):
            raise ValueError('give "auto", or the number of runs at the same time')
        return jobs

    @field_validator("grid", mode="before")
    @classmethod
    def _keys_are_quoted(cls, grid: Any) -> Any:
        for key, values in grid.items() if isinstance(grid, dict) else ():
            if isinstance(values, dict):
                raise ValueError(f'{key!r} is a table; write each key in quotes: "{key}.{next(iter(values), "")}" = []')
        return grid

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        grid, names = self.grid or {}, [variant.name for variant in self.variant]
        if self.seeds is not None and SEED in grid:
            raise ValueError(f'give either seeds or "{SEED}" in [grid]')
        for keys in (grid, self.set, *(variant.set for variant in self.variant)):
            if "output" in keys:
                raise ValueError("'output' cannot vary: every run has a folder of its own in the sweep's; leave it out")
        for variant in self.variant:
            if names.count(variant.name) > 1:
                raise ValueError(f"two variants have the name {variant.name!r}; choose another name")
            if unknown := set(variant.skip) - {*grid, SEED}:
                raise ValueError(f"variant {variant.name!r} skips {min(unknown)!r}, which is not a key of the grid")
            if both := set(variant.set) & (set(grid) - set(variant.skip)):
                raise ValueError(f"variant {variant.name!r} sets {min(both)!r}, which the grid varies; skip it there")
        if self.recipe is None and not (self.variant and all(variant.recipe for variant in self.variant)):
            raise ValueError("the key 'recipe' is missing")
        if not (grid or self.seeds or self.variant):
            raise ValueError("there is nothing to vary; give seeds, [grid] or [[variant]]")
        return self


@dataclass(frozen=True)
class Run:
    """One student of a sweep.

    Attributes:
        name: the name of the run and of its folder; `group` is the same without the seed.
        variant: the name of its variant, if the sweep has variants.
        path, overrides: a recipe file, and overrides as `distill run --set` takes them.
        recipe: the recipe with the overrides applied.
    """

    name: str
    group: str
    variant: str | None
    path: Path
    overrides: tuple[str, ...]
    recipe: Recipe

    @property
    def has_teacher(self) -> bool:
        """Whether any loss compares the student with a teacher."""
        losses = (*self.recipe.loss, *(spec for stage in self.recipe.stage for spec in stage.loss))
        return any(spec.has_teacher for spec in losses)


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep file; `keys` are the keys of the recipe in which they may differ."""

    spec: SweepSpec
    runs: tuple[Run, ...]
    keys: tuple[str, ...]


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file and return its runs, in the order of the file, each with a valid recipe.

    Raises:
        RecipeError: for a missing or invalid file, an invalid recipe of a run, two equal runs, or runs that are scored
            on different files or on none.
    """
    try:
        spec = SweepSpec.model_validate(read_toml(path, "sweep"))
    except ValidationError as error:
        raise RecipeError(f"{path}: {in_words(error, SweepSpec)}.") from None
    _check_number(path, spec)
    keys = dict.fromkeys((*(spec.grid or {}), *(key for variant in spec.variant for key in variant.set), SEED))
    sweep = Sweep(spec, tuple(_runs(spec)), tuple(keys))
    _check_differ(path, sweep)
    _check_scored_alike(path, sweep)
    return sweep


def _axes(spec: SweepSpec) -> dict[str, tuple[Any, ...]]:
    """Return the keys that vary, and their values."""
    return (spec.grid or {}) | ({SEED: spec.seeds} if spec.seeds is not None else {})


def _axes_of(spec: SweepSpec, variant: Variant | None) -> dict[str, tuple[Any, ...]]:
    skipped = variant.skip if variant is not None else ()
    return {key: values for key, values in _axes(spec).items() if key not in skipped}


def _check_number(path: Path, spec: SweepSpec) -> None:
    number = sum(math.prod(map(len, _axes_of(spec, variant).values())) for variant in spec.variant or (None,))
    if number > MOST_RUNS:
        raise RecipeError(f"{path}: these would be {number:,} runs, and a sweep has at most {MOST_RUNS:,}; vary less.")


def _runs(spec: SweepSpec) -> Iterator[Run]:
    axes = _axes(spec)
    for variant in spec.variant or (None,):
        fixed = variant.set if variant is not None else {}
        own = _axes_of(spec, variant)
        recipe_path = (variant.recipe if variant is not None else None) or spec.recipe
        assert recipe_path is not None
        prefix = variant.name if variant is not None else None
        for values in itertools.product(*own.values()):
            point = dict(zip(own, values, strict=True))
            name = name_of(prefix, point, axes)
            overrides = [override(key, value) for key, value in {**spec.set, **fixed, **point}.items()]
            overrides.append(override("output", str(spec.output / RUNS / name)))
            try:
                recipe = read_recipe(recipe_path, overrides)
            except RecipeError as error:
                raise RecipeError(f"run {name}: {error}") from None
            seedless = {key: value for key, value in point.items() if key != SEED}
            group = name_of(prefix, seedless, axes) or recipe_path.stem
            yield Run(name, group, prefix, recipe_path, tuple(overrides), recipe)


def _check_differ(path: Path, sweep: Sweep) -> None:
    seen: dict[str, str] = {}
    for run in sweep.runs:
        content = run.recipe.model_dump_json(exclude={"output"})
        if content in seen:
            raise RecipeError(f"{path}: the runs {seen[content]} and {run.name} are the same; leave one of them out.")
        seen[content] = run.name
    names = Counter(run.name.lower() for run in sweep.runs)  # some file systems ignore case
    for run in sweep.runs:
        if names[run.name.lower()] > 1:
            raise RecipeError(f"{path}: two runs would have the name {run.name}; make them variants with names.")


def _check_scored_alike(path: Path, sweep: Sweep) -> None:
    first = sweep.runs[0]
    for run in sweep.runs:
        if run.recipe.eval is None:
            raise RecipeError(
                f"run {run.name}: {run.path} has no section [eval], so there is no score to compare; add one."
            )
        if run.recipe.eval != first.recipe.eval:
            raise RecipeError(
                f"{path}: the runs {first.name} and {run.name} are scored on different data; give their recipes the "
                "same [eval]."
            )
