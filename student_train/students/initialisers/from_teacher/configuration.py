"""The configuration of a student that starts from its teacher's weights: the teacher's, in another shape."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PretrainedConfig

from shared.errors import RecipeError
from student_train.students.heads import field_names, label_values, task_values
from student_train.students.needs import Needs
from student_train.students.sizes import EMBEDDING_SIZE_NAMES, Sizes, intermediate_size_name


@dataclass(frozen=True)
class Wanted:
    """What a recipe says of such a student; None is as the teacher has it."""

    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int | None
    model_type: str | None
    dropout: float
    tie_embeddings: bool | None


def teacher_configuration(values: dict[str, Any]) -> PretrainedConfig:
    """Return the configuration that a dump has of its teacher. Raises RecipeError if transformers does not know it."""
    model_type = values.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise RecipeError(
            f"student.start: transformers has no model_type {model_type!r}, which the dump names as that of the "
            "teacher; leave the key out."
        )
    try:
        return CONFIG_MAPPING[model_type].from_dict(dict(values))
    except Exception as error:  # configurations check their values in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(
            f"student.start: the configuration of the teacher in the dump cannot be read ({reason}); leave the key out."
        ) from error


def configuration(wanted: Wanted, needs: Needs, layers_of: Callable[[int, int], Sequence[int]]) -> PretrainedConfig:
    """Return the configuration of a student for the teacher's weights: everything but the shape, the labels and the
    dropout is the teacher's, so that the same shape is the same model.

    Heads keep their size where the architecture lets heads and width differ (`head_dim`); elsewhere a head is
    hidden_size / heads wide. Grouped heads stay grouped. Narrower word embeddings stay as they are.

    Args:
        layers_of: numbers of layers of teacher and student -> the teacher's, from 0, that the student's start from.

    Raises:
        RecipeError: if the student is another type of model than the teacher, or larger in any way.
    """
    assert needs.teacher is not None
    config = teacher_configuration(needs.teacher.config)
    names, old = field_names(type(config)), Sizes.of(config)
    _check_same_type(wanted, config)
    neurons = wanted.intermediate_size or max(1, old.neurons * wanted.hidden_size // old.width)
    _check_not_larger(wanted, neurons, old)
    values: dict[str, Any] = {
        "num_hidden_layers": wanted.layers,
        "hidden_size": wanted.hidden_size,
        "num_attention_heads": wanted.heads,
        intermediate_size_name(type(config)): neurons,
        **label_values(needs.label_names),
        **{name: wanted.dropout for name in names if "dropout" in name or name.endswith("_pdrop")},
        **{name: value for name, value in task_values(needs.auto_class).items() if name in names},
    }
    if "num_key_value_heads" in names:
        values["num_key_value_heads"] = _key_heads(wanted.heads, old)
    if "head_dim" in names:
        values["head_dim"] = old.head_size
    else:
        _check_head_size(wanted, old, config)
    for name in EMBEDDING_SIZE_NAMES:
        if getattr(config, name, None) == old.width:
            values[name] = wanted.hidden_size
    layers = layers_of(old.layers, wanted.layers)
    for name, each in vars(config).items():
        if name.startswith("layer") and isinstance(each, (list, tuple)) and len(each) == old.layers:
            values[name] = [each[number] for number in layers]
    for name, value in values.items():
        setattr(config, name, value)
    # Trained weights are float32, whatever the type of the teacher's.
    config.dtype = torch.float32
    return config


def _check_same_type(wanted: Wanted, config: PretrainedConfig) -> None:
    if wanted.model_type not in (None, config.model_type):
        raise RecipeError(
            f"student.model_type = {wanted.model_type!r}: the teacher is a {config.model_type!r}, and a student that "
            "starts from its weights (student.start) is of the same type; leave model_type out."
        )
    tied = bool(getattr(config, "tie_word_embeddings", False))
    if wanted.tie_embeddings not in (None, tied):
        raise RecipeError(
            f"student.tie_embeddings = {str(wanted.tie_embeddings).lower()}: the teacher's are "
            f"{'tied' if tied else 'not tied'}, and a student that starts from its weights (student.start) has them "
            "alike; leave tie_embeddings out."
        )


def _check_not_larger(wanted: Wanted, neurons: int, old: Sizes) -> None:
    for key, size, most in (
        ("layers", wanted.layers, old.layers),
        ("hidden_size", wanted.hidden_size, old.width),
        ("heads", wanted.heads, old.heads),
        ("intermediate_size", neurons, old.neurons),
    ):
        if size > most:
            raise RecipeError(
                f"student.{key} = {size}: the teacher has {most}, and a student that starts from its weights "
                f"(student.start) cannot have more; choose up to {most}."
            )


def _check_head_size(wanted: Wanted, old: Sizes, config: PretrainedConfig) -> None:
    size = wanted.hidden_size // wanted.heads
    same = wanted.hidden_size // old.head_size
    if size > old.head_size:
        raise RecipeError(
            f"student.heads = {wanted.heads}: heads of {wanted.hidden_size} / {wanted.heads} = {size} dimensions would "
            f"be wider than the teacher's {old.head_size}, from whose weights they start (student.start); choose at "
            f"least {-(-wanted.hidden_size // old.head_size)}."
        )
    if size < old.head_size and _turns(config):
        raise RecipeError(
            f"student.heads = {wanted.heads}: heads with rotary positions keep the teacher's {old.head_size} "
            f"dimensions; choose heads = {max(same, 1)} for hidden_size = {wanted.hidden_size}."
        )


def _turns(config: PretrainedConfig) -> bool:
    """Whether queries and keys are turned by their positions, each dimension by an angle of its own."""
    names = field_names(type(config))
    return (
        config.model_type == "roformer"
        or getattr(config, "position_embedding_type", None) == "rotary"
        or any("rope" in name or "rotary" in name for name in names)
    )


def _key_heads(heads: int, old: Sizes) -> int:
    """Return the number of key heads of a student with so many heads: its groups are as large as they can be."""
    for per_group in range(old.heads // old.key_heads, 0, -1):
        if heads % per_group == 0 and heads // per_group <= old.key_heads:
            return heads // per_group
    raise RecipeError(
        f"student.heads = {heads}: cannot be divided among at most {old.key_heads} groups of at most "
        f"{old.heads // old.key_heads} heads, as the teacher has them (student.start); choose a multiple of "
        f"{old.heads // old.key_heads}."
    )
