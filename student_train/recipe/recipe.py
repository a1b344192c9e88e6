"""Recipes: one TOML file describes one student and its training, and is checked key by key before anything runs."""

from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from shared.errors import RecipeError
from shared.parsing import NotParsed, parse_toml
from shared.storage import Folder
from shared.validation import in_words, shortened
from student_train.losses.specs import LossSpec
from student_train.recipe.columns import DataSection, EvalSection
from student_train.recipe.sections import OutputFolder, Section, StageSection, TrainingSection, ValidationSection
from student_train.students import StudentSpec


class Recipe(Section):
    """One student and its training.

    Attributes:
        dump, data: exactly one is given: a teacher's dump, or files with gold labels.
        loss, stage: exactly one is given: the losses of a single stage, or several stages with losses of their own.
    """

    output: OutputFolder
    dump: Folder | None = None
    data: DataSection | None = None
    student: StudentSpec
    loss: tuple[LossSpec, ...] = ()
    stage: tuple[StageSection, ...] = ()
    eval: EvalSection | None = None
    training: TrainingSection
    validation: ValidationSection | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dump is None) == (self.data is None):
            raise ValueError("give either dump (a folder that `dump` filled) or [data] (files with gold labels)")
        return self

    @model_validator(mode="after")
    def _losses_or_stages(self) -> Self:
        if not self.loss and not self.stage:
            raise ValueError("the key 'loss' is missing (or 'stage', for several stages with losses of their own)")
        if self.loss and self.stage:
            raise ValueError("give either [[loss]] or [[stage]], each with its own loss")
        # On some file systems, names that differ in their case alone are the same.
        names = [stage.name.lower() for stage in self.stage]
        for index, name in enumerate(names):
            if name in names[:index]:
                own = self.stage[index].name
                raise ValueError(f"stage.{index}.name = {own!r}: another stage has this name; choose another")
        return self

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if not self.stage and not self.training.has_length:
            raise ValueError("training: give either epochs or max_steps")
        for index, stage in enumerate(self.stage):
            if not stage.of(self.training).has_length:
                raise ValueError(f"stage.{index}: give either epochs or max_steps, here or in [training]")
            if self.validation is None and (stage.metric is not None or stage.patience is not None):
                raise ValueError(f"stage.{index}: metric and patience need a section [validation]; add one")
        return self


def read_recipe(path: Path, overrides: list[str]) -> Recipe:
    """Read a recipe from a TOML file and apply `key=value` overrides.

    Keys are dotted, with the items of a list by number: loss.0.weight=0.5. Without a value, a key is unset: epochs=.

    Raises:
        RecipeError: for a missing file, invalid TOML, or an invalid key or value; the message names the key, its value
            and the valid ones.
    """
    return _checked(read_toml(path, "recipe"), overrides, f"{path}: ")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Return the content of a TOML file, a `what` in messages. Raises RecipeError if it cannot be read."""
    try:
        return parse_toml(path.read_bytes())
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such {what}; check the path.") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: this is a folder; name the {what} in it, a TOML file.") from None
    except NotParsed as error:
        raise RecipeError(f"{path}: {error}.") from None
    except (OSError, ValueError) as error:  # a ValueError for names that no file can have
        raise RecipeError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); check the path.") from None


def overridden(recipe: Recipe, overrides: list[str]) -> Recipe:
    """Return the recipe with `key=value` overrides applied. Raises RecipeError for an invalid key or value."""
    return _checked(recipe.model_dump(mode="json", exclude_unset=True), overrides, "") if overrides else recipe


def _checked(content: dict[str, Any], overrides: list[str], where: str) -> Recipe:
    for override in overrides:
        _override(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{where}{in_words(error, Recipe)}.") from None


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {shortened(override)}: write key=value, for instance training.seed=1.")
    try:
        parsed = parse_toml(f"value = {value}")["value"]
    except NotParsed:
        parsed = value  # a word without quotes is a string
    is_unset = not value.strip()  # an empty text is key=""
    *parents, last = key.split(".")
    place: Any = content
    try:
        for name in parents:
            if isinstance(place, dict) and not is_unset:
                place.setdefault(name, {})
            place = place[_part(place, name)]
        if is_unset:
            del place[_part(place, last)]
        else:
            place[_part(place, last)] = parsed
    except (LookupError, ValueError, TypeError):
        what = f"does not give the key {key!r}, so there is nothing to unset" if is_unset else f"has no key {key!r}"
        raise RecipeError(f"--set {shortened(override)}: the recipe {what}.") from None


def _part(place: Any, name: str) -> int | str:
    """Return a part of a dotted key as the index of a list or the key of a table. Raises ValueError for neither."""
    if not isinstance(place, list):
        return name
    if not name.isdecimal():  # -1 would be the last one
        raise ValueError(name)
    return int(name)
