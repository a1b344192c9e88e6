"""Students that begin with some of a checkpoint's layers."""

from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PreTrainedModel

from shared.errors import RecipeError
from shared.models.layers import layers_of
from student_train.students.initialisers.base import Initialiser
from student_train.students.needs import Needs


class KeepLayers(Initialiser):
    """Some of the model's layers, by their numbers from 1, from the bottom up."""

    part = "layers"

    kind: Literal["keep-layers"] = "keep-layers"
    layers: tuple[int, ...]

    def initialise(self, model: PreTrainedModel, needs: Needs) -> None:
        keep_layers(model, self.layers)


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Leave these layers of the stack (from 1) and no other, as Sanh et al. 2019, "DistilBERT" (arXiv 1910.01108,
    section 3) begin a student with every second layer of its teacher.

    Raises:
        RecipeError: for a layer that the model has not, where its configuration does not count its layers, or where the
            layers left are no model of this type.
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
                vars(module)["layer_idx"] = place  # where its keys and values are kept while text is generated
    for name, values in vars(config).items():
        if name.startswith("layer") and isinstance(values, (list, tuple)) and len(values) == count:
            setattr(config, name, [values[number - 1] for number in kept])
    config.num_hidden_layers = len(left)
    with torch.device("meta"):
        again = type(model)(config)
    if again.state_dict().keys() != model.state_dict().keys():
        raise RecipeError(
            f"student.keep_layers = {list(kept)}: a model of type {config.model_type!r} has layers that are not alike, "
            "and would not come back from its folder with these; keep its first layers."
        )
