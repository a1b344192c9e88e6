"""Recipes: one TOML file that describes one student and how it learns, checked key by key before anything runs."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from shared.errors import RecipeError, UsageError
from shared.text.columns import ANSWERS
from shared.text.corpus import Columns
from shared.text.tasks import TASKS, Task
from shared.text.tokenized import DEFAULT_STRIDE
from student_train.losses.logits import LossSpec
from student_train.recipe.sections import Section, StageSection, TrainingSection, ValidationSection
from student_train.students import StudentSpec


class ColumnNames(Section):
    """Which columns of a file hold what; the same names as the options of `dump`."""

    text_column: str = "text"
    pair_column: str | None = None
    messages_column: str | None = None
    label_column: str = "label"
    tokens_column: str = "tokens"
    tags_column: str = "tags"
    question_column: str = "question"
    context_column: str = "context"
    answers_column: str = ANSWERS
    starts_column: str = "answer_starts"
    impossible_column: str = "is_impossible"

    def columns(self, task: Task, labels_required: bool) -> Columns:
        """The columns that `task` reads. Raises UsageError for chats and texts at once."""
        if self.messages_column is not None:
            return Columns.of_chats(self.messages_column, self.text_column, self.pair_column)
        if task.windows is not None:
            names = self.question_column, self.context_column, self.answers_column, self.starts_column
            return Columns.of_questions(*names, self.impossible_column, label_required=labels_required)
        label = self.tags_column if task.words else self.label_column
        text = self.tokens_column if task.words else self.text_column
        needs_labels = task.classes == "labels"
        return Columns(
            text,
            None if task.words else self.pair_column,
            label if needs_labels else None,
            label_required=needs_labels and labels_required,
            words=task.words,
        )


class ScoredColumns(ColumnNames):
    """Those of a held-out file, in which a column may name the group of each row: a language, a domain."""

    group_column: str | None = None

    def columns(self, task: Task, labels_required: bool) -> Columns:
        """With the column of groups. Raises UsageError for a task that is not scored row by row."""
        by_row = ("labels", "spans")
        if self.group_column is not None and task.classes not in by_row:
            able = ", ".join(each.name for each in TASKS.values() if each.classes in by_row)
            raise UsageError(
                f"the group column {self.group_column!r} is for tasks that are scored row by row ({able}), and this is "
                f"{task.name}; leave it out."
            )
        return replace(super().columns(task, labels_required), group=self.group_column)


class DataSection(ColumnNames):
    """[data]: files with gold labels to learn from, in place of a dump.

    `labels` are the label names in order (by default those that occur, sorted); `tokenizer` is a folder or hub id, by
    default that of a pretrained student. `stride` is by how many tokens the windows of a question's context overlap.
    """

    task: str
    train: tuple[str, ...] = Field(min_length=1)
    labels: tuple[str, ...] | None = None
    tokenizer: str | None = None
    max_length: int = Field(default=512, ge=2)
    positions: str | None = None
    stride: int = Field(default=DEFAULT_STRIDE, ge=0)
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _known_task(self) -> Self:
        trainable = [name for name, task in TASKS.items() if task.classes is not None]
        if self.task not in trainable:
            raise ValueError(f"task {self.task!r} is unknown here; the valid ones are {', '.join(trainable)}")
        return self


class EvalSection(ScoredColumns):
    """[eval]: a held-out file to score the finished student on, and a dump of held-out rows for its agreement. `stride`
    is by how many tokens the windows of a question's context overlap."""

    data: tuple[str, ...] = Field(min_length=1)
    positions: str | None = None
    stride: int = Field(default=DEFAULT_STRIDE, ge=0)
    dump: Path | None = None


class Recipe(Section):
    """One student and how it learns. With `dump` it learns from a teacher's record, with `data` from gold labels.

    `loss` is for a single stage of training, `stage` for several.
    """

    output: Path
    dump: Path | None = None
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
            raise ValueError("the key 'loss' is missing (or 'stage', for several phases with losses of their own)")
        if self.loss and self.stage:
            raise ValueError("give either [[loss]] or [[stage]], each with its own loss")
        names = [stage.name for stage in self.stage]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(f"stage.{index}.name = {name!r}: another stage has this name; choose another")
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
    """The recipe in a TOML file, with `key=value` overrides (dotted keys; list items by number: loss.0.weight=0.5).

    Raises:
        RecipeError: for a missing file, invalid TOML, or an invalid key or value, naming the key, its value and the
            valid ones.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such recipe; check the path.") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: this is a folder; name the recipe in it, a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid TOML ({error}).") from None
    for override in overrides:
        _override(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{path}: {'; '.join(_sentence(problem) for problem in error.errors())}.") from None


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override!r}: write key=value, for instance training.seed=1.")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # A bare word is meant as text.
    *parents, last = key.split(".")
    place: Any = content
    try:
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
        place[int(last) if isinstance(place, list) else last] = parsed
    except (IndexError, ValueError, TypeError, AttributeError):
        raise RecipeError(f"--set {override!r}: the recipe has no place {key!r}.") from None


def _sentence(problem: Any) -> str:
    """One problem of pydantic's as: key, value, what is valid."""
    location = list(problem["loc"])
    # A discriminated union puts its tag into the location, which is no key of the file.
    keys = [str(part) for index, part in enumerate(location) if not _is_tag(location, index)]
    key, message = ".".join(keys), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r} (its value is {problem['input']!r}); valid here: {_valid_keys(location)}"
    if problem["type"] == "missing":
        return f"the key {key!r} is missing"
    if problem["type"] == "union_tag_invalid":
        context = problem["ctx"]
        return f"{key}.kind = {context['tag']!r}: the valid ones are {context['expected_tags']}"
    if problem["type"] == "union_tag_not_found":
        kinds = [model.model_fields["kind"].default for model in _models_at(location)]
        return f"the key '{key}.kind' is missing; the valid ones are {', '.join(map(repr, kinds))}"
    value = "" if isinstance(problem["input"], (dict, list)) else f" = {problem['input']!r}"
    return f"{key}{value}: {message}" if key else message


def _is_tag(location: list[Any], index: int) -> bool:
    after_student = location[0] == "student" and index == 1
    return after_student or (index >= 2 and location[index - 2] == "loss" and isinstance(location[index - 1], int))


def _valid_keys(location: list[Any]) -> str:
    """The keys of the section in which an unknown one was found."""
    (section,) = _models_at(location[:-1])
    return ", ".join(sorted(field.alias or name for name, field in section.model_fields.items()))


def _models_at(location: list[Any]) -> list[type[BaseModel]]:
    """What may stand at a place: one model for a plain section, several for a union whose tag is not said."""
    models: list[type[BaseModel]] = [Recipe]
    for part in location:
        if len(models) == 1 and part in models[0].model_fields:
            models = _models(models[0].model_fields[part].annotation)
        elif not isinstance(part, int):
            # Of a union, the next part, its tag, decides.
            models = [model for model in models if model.model_fields["kind"].default == part]
    return models


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation (a section, an optional one, a union, a tuple of unions) is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
