"""A language model's head (output projection), held back during the forward pass.

A full `[tokens, vocabulary]` tensor is the first to exceed the memory: 16k tokens of a 152k vocabulary take 10 GB. So
in the model the output projection gets zero tokens, and its input is kept and projected afterwards, in slices of the
positions that matter. Once, on a probe, the result is compared with the model's own logits; if there is an unknown step
after the projection, the model's own logits are used.

Shapes: B rows, L tokens, D width, V vocabulary, N positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.models.probe import PROBE_TOKENS, probe_inputs


@dataclass(frozen=True)
class HeldBack:
    """The input of a projection that was held back.

    Attributes:
        states_BLD: the input.
        dtype: the type in which the model would have projected it: half precision under autocast, which may be active
            only inside the model.
    """

    states_BLD: Tensor
    dtype: torch.dtype

    @property
    def states_ND(self) -> Tensor:
        """The states of all N = B * L tokens."""
        return self.states_BLD.flatten(0, -2)


def run_without_head(model: nn.Module, projection: nn.Module, inputs: dict[str, Any]) -> tuple[Any, HeldBack]:
    """Run `model` and return (its output, in which the logits have zero tokens; the input of the projection).

    `model` is the model of the projection, or a wrapper around it (DistributedDataParallel).

    Raises:
        ValueError: if the projection ran more than once, or not at all.
    """
    found: list[HeldBack] = []

    def hold_back(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        states_BLD, *others = arguments
        device = states_BLD.device.type
        autocast = torch.is_autocast_enabled(device)
        found.append(HeldBack(states_BLD, torch.get_autocast_dtype(device) if autocast else module.weight.dtype))
        return (states_BLD[..., :0, :], *others)

    hook = projection.register_forward_pre_hook(hold_back)
    try:
        output = model(**inputs)
    finally:
        hook.remove()
    if len(found) != 1:
        raise ValueError(f"the output projection of {type(model).__name__} ran {len(found)} times in a forward pass.")
    return output, found[0]


@torch.no_grad()
def gives_own_logits(
    model: PreTrainedModel,
    projection: nn.Module,
    after: Callable[[Tensor], Tensor],
    logits_of: Callable[[dict[str, Any], Tensor], Tensor],
) -> bool:
    """Whether `logits_of`, which holds the projection back, gives the model's own logits.

    Two things are checked, because the rounding error of matrix products in half precision is larger than the effect of
    a soft cap: that each of the model's logits is `after` applied to the output of its own projection, and that this
    output, up to rounding, is the projection of the states that are held back.

    Args:
        model: the model, which must be in evaluation mode.
        projection: its output projection.
        after: the step after the projection.
        logits_of: (inputs, flat indices [N] into B * L) -> float32 logits_NV.
    """
    inputs = probe_inputs(model)
    projected: list[Tensor] = []
    hook = projection.register_forward_hook(lambda module, arguments, output: projected.append(output))
    try:
        expected_NV = model(**inputs).logits[0].float()
    finally:
        hook.remove()
    try:
        found_NV = logits_of(inputs, torch.arange(PROBE_TOKENS, device=model.device)).to(expected_NV.device)
    except (RuntimeError, ValueError, IndexError):
        return False  # The model expects the projection's output for all tokens, or calls the projection twice.
    if len(projected) != 1 or found_NV.shape != expected_NV.shape:
        return False
    # NaN weights are reported later, with the row; here they must not be mistaken for an unknown head.
    rounding = torch.finfo(projected[0].dtype).eps
    reached_NV = after(projected[0][0]).float().to(expected_NV.device)
    blur = max(1e-4, 16 * rounding * float(expected_NV.nan_to_num().abs().max()))
    return torch.allclose(reached_NV, expected_NV, rtol=1e-6, atol=1e-6, equal_nan=True) and torch.allclose(
        found_NV, expected_NV, rtol=0.0, atol=blur, equal_nan=True
    )
