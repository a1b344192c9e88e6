"""Recipes: one TOML file that describes one student and how it learns, checked key by key before anything runs."""

import tomllib
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import RecipeError
from shared.text.corpus import Columns
from shared.text.formats import ANSWERS
from shared.text.tasks import TASKS, Task
from shared.text.tokenized import DEFAULT_STRIDE
from student_train.objective import LossSpec
from student_train.students import StudentSpec


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ColumnNames(_Section):
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


class EvalSection(ColumnNames):
    """[eval]: a held-out file to score the finished student on, and a dump of held-out rows for its agreement. `stride`
    is by how many tokens the windows of a question's context overlap."""

    data: tuple[str, ...] = Field(min_length=1)
    positions: str | None = None
    stride: int = Field(default=DEFAULT_STRIDE, ge=0)
    dump: Path | None = None


class TrainingSection(_Section):
    """[training]: either `epochs` over the rows or `max_steps`; a batch has `batch_size` rows (32 where nothing is
    said) or about `batch_tokens` tokens, on all ranks together.

    `report_to` names trackers that the Trainer knows and that are installed: "tensorboard", "wandb", ...
    """

    epochs: float | None = Field(default=None, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    batch_tokens: int | None = Field(default=None, ge=1, description="tokens of a batch, padding not counted")
    gradient_accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=5e-5, gt=0)
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of all steps")
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    freeze_embeddings: bool = False
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu"] = "auto"
    seed: int = Field(default=0, ge=0)
    log_steps: int = Field(default=50, ge=1)
    report_to: tuple[str, ...] = ()
    save_steps: int = Field(default=500, ge=1, description="a checkpoint to resume from, every so many steps")

    @model_validator(mode="before")
    @classmethod
    def _one_batch(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        has_rows, has_tokens = (values.get(key) is not None for key in ("batch_size", "batch_tokens"))
        if has_rows and has_tokens:
            raise ValueError("give either batch_size (rows) or batch_tokens")
        return values if has_rows or has_tokens else {**values, "batch_size": 32}

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give either epochs or max_steps")
        return self


class Recipe(_Section):
    """One student and how it learns. With `dump` it learns from a teacher's record, with `data` from gold labels."""

    output: Path
    dump: Path | None = None
    data: DataSection | None = None
    student: StudentSpec
    loss: tuple[LossSpec, ...] = Field(min_length=1)
    eval: EvalSection | None = None
    training: TrainingSection

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dump is None) == (self.data is None):
            raise ValueError("give either dump (a folder that `dump` filled) or [data] (files with gold labels)")
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
        kinds = [model.model_fields["kind"].default for model in _models(Recipe.model_fields[location[0]].annotation)]
        return f"the key '{key}.kind' is missing; the valid ones are {', '.join(map(repr, kinds))}"
    value = "" if isinstance(problem["input"], (dict, list)) else f" = {problem['input']!r}"
    return f"{key}{value}: {message}" if key else message


def _is_tag(location: list[Any], index: int) -> bool:
    after_student = location[0] == "student" and index == 1
    return after_student or (location[0] == "loss" and index == 2)


def _valid_keys(location: list[Any]) -> str:
    """The keys of the section in which an unknown one was found."""
    section: type[BaseModel] = Recipe
    for part in location[:-1]:
        if part in section.model_fields:
            models = _models(section.model_fields[part].annotation)
            # One model for a plain section; several for a union, among which the next part, its tag, decides.
            section = models[0]
        elif not isinstance(part, int):
            section = next(model for model in models if model.model_fields["kind"].default == part)
    return ", ".join(sorted(field.alias or name for name, field in section.model_fields.items()))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation (a section, an optional one, a union, a tuple of unions) is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
