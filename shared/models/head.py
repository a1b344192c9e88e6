"""A language model's head, held back while the model runs.

A full `[tokens, vocabulary]` tensor is what runs out of memory first: 16k tokens of a 152k vocabulary are 10 GB. So
the output projection gets zero tokens inside the model, and what would have gone into it is kept, to be projected
afterwards at the positions that matter, a slice at a time. Whether that gives what the model itself gives is found out
once, on a probe: an unknown step after the projection means that the model's own logits are used.

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
    """What would have gone into a projection, and the type in which it would have been projected there: half precision
    under autocast, which may be open inside of the model alone."""

    states_BLD: Tensor
    dtype: torch.dtype

    @property
    def states_ND(self) -> Tensor:
        """The states of all B * L tokens."""
        return self.states_BLD.flatten(0, -2)


def run_without_head(model: nn.Module, projection: nn.Module, inputs: dict[str, Any]) -> tuple[Any, HeldBack]:
    """The output of `model` but for its logits, of which there are none, and what was held back. `model` is the
    projection's, or one that wraps it (DistributedDataParallel).

    Raises:
        ValueError: where the projection ran more than once, or never.
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
    """Whether `logits_of` (inputs, flat indices [N] into B * L -> float32 logits_NV, which holds the projection back)
    gives the logits of the model, which must be in evaluation mode.

    Two questions, because half precision blurs matrix products by more than a soft cap changes them: are the model's
    logits, number by number, what `after` makes of its own projection's output? And is that output, but for rounding,
    the projection of what is held back?
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
        return False  # A model that takes its projection's output to be of all tokens, or calls it twice.
    if len(projected) != 1 or found_NV.shape != expected_NV.shape:
        return False
    # NaN weights are reported later, with the row; here they must not look like an unknown head.
    rounding = torch.finfo(projected[0].dtype).eps
    reached_NV = after(projected[0][0]).float().to(expected_NV.device)
    blur = max(1e-4, 16 * rounding * float(expected_NV.nan_to_num().abs().max()))
    return torch.allclose(reached_NV, expected_NV, rtol=1e-6, atol=1e-6, equal_nan=True) and torch.allclose(
        found_NV, expected_NV, rtol=0.0, atol=blur, equal_nan=True
    )
