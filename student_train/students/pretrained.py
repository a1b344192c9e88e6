"""A checkpoint as a student, with all or some of its layers."""

import re
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, PositiveInt, field_validator
from transformers import PretrainedConfig, PreTrainedModel

from shared.errors import RecipeError
from shared.models.loading import load_config, load_model
from student_train.students.base import Student
from student_train.students.heads import (
    check_has_head,
    field_names,
    head_is_trained,
    label_values,
    task_values,
)
from student_train.students.initialisers import Initialiser, KeepLayers
from student_train.students.needs import Needs


class PretrainedStudent(Student):
    """A checkpoint that AutoModel reads from safetensors, by path or hub id; its head may be new.

    `keep_layers` are the numbers, from 1, of the layers to keep; the others are removed.
    """

    kind: Literal["pretrained"] = "pretrained"
    path: str
    keep_layers: tuple[PositiveInt, ...] | None = Field(default=None, min_length=1)

    @field_validator("keep_layers")
    @classmethod
    def _ascending(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and any(first >= second for first, second in pairwise(value)):
            raise ValueError("layer numbers must be strictly increasing, from the bottom up")
        return value

    @property
    def checkpoint(self) -> str:
        return self.path

    @property
    def initialisers(self) -> tuple[Initialiser, ...]:
        return () if self.keep_layers is None else (KeepLayers(layers=self.keep_layers),)

    def build(self, needs: Needs) -> PreTrainedModel:
        return _load(self.path, needs.auto_class, needs.label_names)


def _load(path: str, auto_class: str, label_names: tuple[str, ...] | None) -> PreTrainedModel:
    config = load_config(path, RecipeError)
    check_has_head(config, auto_class)
    if label_names is not None:
        if head_is_trained(config, auto_class):
            _check_same_labels(path, config, label_names)
        for name, value in label_values(label_names).items():
            setattr(config, name, value)
    for name, value in task_values(auto_class).items():
        if name in field_names(type(config)):
            setattr(config, name, value)
    model, _ = load_model(
        auto_class,
        path,
        config,
        RecipeError,
        # Trained weights are float32, whatever the type of the checkpoint.
        dtype=torch.float32,
        # Only a head for other labels can mismatch, because the configuration is otherwise the checkpoint's own.
        ignore_mismatched_sizes=label_names is not None,
    )
    return model


def _check_same_labels(path: str, config: PretrainedConfig, label_names: tuple[str, ...]) -> None:
    own_names = tuple(str(name) for _, name in sorted((config.id2label or {}).items()))
    is_generic = all(re.fullmatch(r"LABEL_\d+", name) for name in own_names)
    if not is_generic and own_names != label_names:
        raise RecipeError(
            f"The student {path} was trained for the labels {', '.join(own_names)}, but the dump has "
            f"{', '.join(label_names)}: names and order must agree. Start from a checkpoint without this head, or "
            "rename its labels."
        )
