"""The teacher's layers, run only up to the last one that is recorded.

Hidden states are numbered as in transformers: 0 is the input of the first layer, n the output of the n-th layer.
"""

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.models.layers import numbered_layers
from shared.models.probe import probe_inputs


class _Enough(Exception):
    """Raised inside the model when the last wanted layer has run."""


class Layers:
    """The layers of a model's trunk.

    Attributes:
        modules: the n-th layer is modules[n - 1]; empty if not every layer is a module (`numbered_layers`).
        stops: whether running only up to a layer gives the same hidden states as the whole model, tested on a probe.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.modules = numbered_layers(model)
        self.stops = bool(self.modules) and self._same_as_whole()

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
    def _same_as_whole(self) -> bool:
        inputs = probe_inputs(self.model)
        wanted = range(len(self.modules))
        try:
            whole = self.model(**inputs, output_hidden_states=True).hidden_states
            found = self.run(inputs, wanted)
        except Exception:  # an unusual model is run whole
            return False
        return len(whole) == len(self.modules) + 1 and all(
            torch.equal(found[layer].nan_to_num(), whole[layer].nan_to_num()) for layer in wanted
        )
