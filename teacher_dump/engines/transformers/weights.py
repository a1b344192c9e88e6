"""A model's weights, as a dump keeps them: those of its own `save_pretrained`, tied weights once."""

import json
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shared.errors import TeacherError, UsageError
from shared.models.layers import layer_count, numbered_layers


def weights_of(model: PreTrainedModel, layers: Collection[int] | None) -> dict[str, Tensor]:
    """The model's weights by the names of its state dict, on the device and in the type in which it is run.

    Args:
        layers: numbers of the layers, from 1, to which the weights are limited, beside everything outside of the
            layers; None for all.

    Raises:
        TeacherError: for a quantized model, one with code of its own, or layers of a model that has no numbered ones.
        UsageError: for a layer that the model lacks.
    """
    name = type(model).__name__
    if not type(model).__module__.startswith("transformers."):
        raise TeacherError(
            f"--teacher-weights: {name} comes with Python code of its own, which students never run, so none could be "
            "made from its weights; leave the option out."
        )
    others = {str(weight.dtype) for weight in model.parameters() if weight.dtype not in _PLAIN}
    if getattr(model.config, "quantization_config", None) is not None or others:
        raise TeacherError(
            f"--teacher-weights: {name} is quantized, so it has no plain weights; leave the option out, or use the "
            "model from which it was made."
        )
    unwanted = set() if layers is None else _outside(model, layers)
    ignored = set(model._keys_to_ignore_on_save or ()) | unwanted
    return {key: weight for key, weight in _each_once(model).items() if key not in ignored}


def config_of(model: PreTrainedModel) -> dict[str, Any]:
    """The model's configuration as its own `save_pretrained` would write it, without the path that it came from."""
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=True))
    # `load_teacher` has turned the cache off.
    return {key: value for key, value in config.items() if key not in ("_name_or_path", "use_cache")}


_PLAIN = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _each_once(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict with tied weights (one place in memory) once, under the name that is not tied to another."""
    tied = model.all_tied_weights_keys
    names: dict[Any, str] = {}
    state: Mapping[str, Tensor] = model.state_dict()
    for key, weight in state.items():
        place = (weight.data_ptr(), weight.shape, weight.stride()) if weight.numel() else key
        if place not in names or names[place] in tied:
            names[place] = key
    return {key: state[key] for key in state if key in set(names.values())}


def _outside(model: PreTrainedModel, layers: Collection[int]) -> set[str]:
    """The names of the weights of all other layers than these."""
    found = numbered_layers(model)
    if len(found) != layer_count(model) or not found:
        raise TeacherError(
            f"--teacher-weights: the layers of {type(model).__name__} are not modules of their own; use all."
        )
    for layer in layers:
        if not 1 <= layer <= len(found):
            raise UsageError(f"--teacher-weights {layer}: this teacher has layers 1 to {len(found)}.")
    left_out = {
        id(weight)
        for number, layer in enumerate(found, 1)
        if number not in layers
        for weight in layer.state_dict(keep_vars=True).values()
    }
    return {key for key, weight in model.state_dict(keep_vars=True).items() if id(weight) in left_out}
