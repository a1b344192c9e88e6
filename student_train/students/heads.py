"""Heads for tasks: check that a type of model has one, and make a model with it."""

from dataclasses import fields
from typing import Any

import transformers
from transformers import PretrainedConfig, PreTrainedModel

from shared.errors import RecipeError
from shared.models import loading
from shared.text.tasks import TASKS
from student_train.students.needs import Needs


def auto_class_named(name: str) -> Any:
    """The Auto class of transformers with this name. Raises RecipeError if no task uses it, with the valid names."""
    known = dict.fromkeys(task.auto_class for task in TASKS.values())
    if name not in known:
        raise RecipeError(f"No student can be built as {name!r}; the heads are {', '.join(known)}.")
    return getattr(transformers, name)


def task_values(auto_class: str) -> dict[str, Any]:
    """The values that the tasks of this head require in a configuration, if it has these fields."""
    tasks = (task for task in TASKS.values() if task.auto_class == auto_class)
    return {name: value for task in tasks for name, value in task.config_values.items()}


def check_has_head(config: PretrainedConfig, auto_class: str) -> None:
    """Check that models of this type have the head. Raises RecipeError if they do not."""
    if type(config) not in auto_class_named(auto_class)._model_mapping:
        raise RecipeError(
            f"A student of model type {config.model_type!r} has no head for {auto_class}; choose another kind of "
            "student, or another task."
        )


def head_is_trained(config: PretrainedConfig, auto_class: str) -> bool:
    """Whether the checkpoint was saved with this head, by the class that `auto_class` loads."""
    models = auto_class_named(auto_class)._model_mapping[type(config)]
    names = {model.__name__ for model in (models if isinstance(models, (list, tuple)) else [models])}
    return not names.isdisjoint(config.architectures or ())


def fresh_model(config: PretrainedConfig, auto_class: str) -> PreTrainedModel:
    """A model with this configuration and random weights. Raises RecipeError if there is no such head."""
    check_has_head(config, auto_class)
    return loading.fresh_model(auto_class, config, RecipeError)


def fresh_values(needs: Needs) -> dict[str, Any]:
    """The values of the configuration that all fresh students share."""
    return {"vocab_size": needs.vocab_size, "pad_token_id": needs.pad_token_id, **label_values(needs.label_names)}


def label_values(label_names: tuple[str, ...] | None) -> dict[str, Any]:
    """The values of the configuration that name the classes."""
    if label_names is None:
        return {}
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: position for position, name in enumerate(label_names)},
    }


def field_names(config_class: type[PretrainedConfig]) -> set[str]:
    """The names of the fields of a class of configurations."""
    return {field.name for field in fields(config_class)}
