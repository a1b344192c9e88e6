"""The teacher's layers, run only up to the last one that is recorded.

Hidden states are numbered as in transformers: 0 is the input of the first layer, n the output of the n-th layer.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.models.layers import layer_count, numbered_layers
from shared.models.probe import probe_inputs


class _Enough(Exception):
    """Raised inside the model when the last wanted layer has run."""


class Layers:
    """The layers of a model's trunk.

    Attributes:
        modules: the n-th layer is modules[n - 1]; empty if not every layer is a module (`numbered_layers`).
        gives_states: whether the model's outputs have the hidden states of all layers, of every token, tested on a
            probe. Those of an encoder-decoder do not: it has two stacks, and its decoder reads other tokens.
        stops: whether running only up to a layer gives the same hidden states as the whole model, tested as well.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.modules = numbered_layers(model)
        inputs = probe_inputs(model)
        whole = _states_of_whole(model, inputs)
        tokens = inputs["input_ids"].shape
        self.gives_states = len(whole) > layer_count(model) and all(
            state_BLD.shape[:2] == tokens for state_BLD in whole
        )
        self.stops = bool(self.modules) and self._same_as(whole, inputs)

    def run(self, arguments: dict[str, Any], wanted: Collection[int]) -> dict[int, Tensor]:
        """The hidden states [B, L, D] of the wanted layers, which must not include the model's last layer."""
        found: dict[int, Tensor] = {}
        last = max(wanted)

        def keep_input(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            found[0] = given[0] if given else named["hidden_states"]
            if last == 0:
                raise _Enough

        def keep_output(layer: int, module: nn.Module, given: Any, output: Any) -> None:
            found[layer] = output[0] if isinstance(output, tuple) else output
            if layer == last:
                raise _Enough

        hooks = [self.modules[0].register_forward_pre_hook(keep_input, with_kwargs=True)] if 0 in wanted else []
        for layer in wanted:
            if layer > 0:
                keep = partial(keep_output, layer)
                hooks.append(self.modules[layer - 1].register_forward_hook(keep))
        try:
            self.model(**arguments)
        except _Enough:
            return found
        finally:
            for hook in hooks:
                hook.remove()
        raise AssertionError("the model ended before its last wanted layer")

    @torch.inference_mode()
    def _same_as(self, whole: Sequence[Tensor], inputs: dict[str, Any]) -> bool:
        wanted = range(len(self.modules))
        try:
            found = self.run(inputs, wanted)
        except Exception:  # an unusual model is run whole
            return False
        return len(whole) == len(self.modules) + 1 and all(
            torch.equal(found[layer].nan_to_num(), whole[layer].nan_to_num()) for layer in wanted
        )


@torch.inference_mode()
def _states_of_whole(model: PreTrainedModel, inputs: dict[str, Any]) -> Sequence[Tensor]:
    """Return the hidden states that the whole model gives; empty if it gives none."""
    try:
        return tuple(model(**inputs, output_hidden_states=True).hidden_states or ())
    except Exception:  # models without them fail in many ways
        return ()
