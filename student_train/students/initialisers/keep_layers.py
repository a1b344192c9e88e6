"""Initialise a student with some of a checkpoint's layers."""

from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PreTrainedModel

from shared.errors import RecipeError
from shared.models.layers import layers_of
from student_train.students.initialisers.base import Initialiser
from student_train.students.needs import Needs


class KeepLayers(Initialiser):
    """Keeps some of the model's layers, given by their numbers from 1, in increasing order."""

    part = "layers"

    kind: Literal["keep-layers"] = "keep-layers"
    layers: tuple[int, ...]

    def initialise(self, model: PreTrainedModel, needs: Needs) -> None:
        keep_layers(model, self.layers)


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Remove all layers but these (numbered from 1) from a model.

    Sanh et al. 2019, "DistilBERT" (arXiv 1910.01108, section 3), initialise a student with every second layer of its
    teacher.

    Raises:
        RecipeError: for a layer that the model lacks, a configuration without the number of layers, or if the remaining
            layers do not make a model of this type.
    """
    stack, config = layers_of(model), model.config
    count = len(stack)
    if not count or getattr(config, "num_hidden_layers", None) != count:
        raise RecipeError(
            f"student.keep_layers: a model of type {config.model_type!r} has no plain stack of layers; leave it out."
        )
    if kept[-1] > count:
        raise RecipeError(f"student.keep_layers = {list(kept)}: the checkpoint has {count} layers; choose among these.")
    left = [stack[number - 1] for number in kept]
    del stack[:]
    stack.extend(left)
    for place, layer in enumerate(left):
        for module in layer.modules():
            if "layer_idx" in vars(module):
                vars(module)["layer_idx"] = place  # the index of its keys and values in the cache of generation
    for name, values in vars(config).items():
        if name.startswith("layer") and isinstance(values, (list, tuple)) and len(values) == count:
            setattr(config, name, [values[number - 1] for number in kept])
    config.num_hidden_layers = len(left)
    with torch.device("meta"):
        again = type(model)(config)
    if again.state_dict().keys() != model.state_dict().keys():
        raise RecipeError(
            f"student.keep_layers = {list(kept)}: a model of type {config.model_type!r} has layers of different kinds, "
            "and could not be loaded again with these; keep its first layers."
        )
