"""A student's output projection and the losses on its logits, computed slice by slice.

For 2,048 positions and a vocabulary of 152,000, the logits take 1.2 GB, and autograd would keep their log-softmax and
compute their gradient, each as large. Here one slice of positions at a time is projected and its loss computed; the
gradients for states, weight and bias are added up in the same forward pass, and backward only scales these sums.
Neither logits nor their gradient exist for more than one slice, and nothing is computed twice. (The idea is that of
Hsu et al. 2024, "Liger Kernel", arXiv 2410.10989, section 3.2, for cross-entropy.)

Shapes: N positions, M of them in a slice, V vocabulary, D width, P losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from shared.dump.codecs import LogitStep

# Number of logits of a slice. Matrix products on a CPU are fast from about 200 positions on: with 152,064 ids and a
# width of 512, the three products took 6.4 ms a position in slices of 64, 5.4 in slices of 128, 5.1 from 256 on.
SLICE_VALUES = {"cuda": 2**27, "cpu": 2**25}
FEWEST_POSITIONS = 64

# (a slice of positions, its logits_MV) -> (the loss to minimise, values_P to log).
SliceLoss = Callable[[slice, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SlicedLogits:
    """Logits at N positions that are computed on demand.

    Attributes:
        states_ND: inputs of the projection, part of the student's graph.
        weight_VD, bias_V: parameters of the projection.
        after: the step that the student applies to the projection's result.
        dtype: the type in which the student would compute the projection (half precision under autocast).
    """

    states_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    after: LogitStep
    dtype: torch.dtype

    def slices(self) -> Iterator[slice]:
        """Yield slices of positions, in order; one empty slice if there are no positions."""
        values = SLICE_VALUES.get(self.states_ND.device.type, SLICE_VALUES["cpu"])
        step = max(FEWEST_POSITIONS, values // self.weight_VD.shape[0])
        count = len(self.states_ND)
        for start in range(0, max(count, 1), step):
            yield slice(start, min(start + step, count))

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield each slice and its logits_MV, without gradients."""
        with torch.no_grad(), _no_autocast(self.states_ND):
            weight_VD, bias_V = self._cast()
            for part in self.slices():
                states_MD = self.states_ND[part].to(self.dtype)
                yield part, self.after(_at_least_float32(functional.linear(states_MD, weight_VD, bias_V)))

    def summed_loss(self, slice_loss: SliceLoss) -> tuple[Tensor, Tensor]:
        """Return (loss, values_P), each the sum of what `slice_loss` returns for all slices.

        The loss is part of the graph; backward can run through it once. `slice_loss` gets logits in float32 or wider,
        and must scale a slice by its share of all positions.
        """
        loss, values_P = _SummedLoss.apply(
            self.states_ND, self.weight_VD, self.bias_V, self, slice_loss, torch.is_grad_enabled()
        )
        return loss, values_P

    def _cast(self) -> tuple[Tensor, Tensor | None]:
        return self.weight_VD.to(self.dtype), None if self.bias_V is None else self.bias_V.to(self.dtype)


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        sliced: SlicedLogits,
        slice_loss: SliceLoss,
        in_training: bool,
    ) -> tuple[Tensor, Tensor]:
        needs = [needed and in_training for needed in ctx.needs_input_grad[:3]]
        sums = _GradientSums(sliced, *needs)
        losses, values = [], []
        with _no_autocast(states_ND):
            cast_weight_VD, cast_bias_V = sliced._cast()
            for part in sliced.slices():
                states_MD = states_ND[part].to(sliced.dtype)
                projected_MV = _at_least_float32(functional.linear(states_MD, cast_weight_VD, cast_bias_V))
                with torch.set_grad_enabled(any(needs)):
                    loss, values_P = slice_loss(part, sliced.after(projected_MV.requires_grad_(any(needs))))
                losses.append(loss.detach())
                values.append(values_P.detach())
                by_projected_MV = torch.autograd.grad(loss, projected_MV)[0] if any(needs) else None
                # The graph holds the logits: free it before those of the next slice are computed.
                del loss, values_P, projected_MV
                if by_projected_MV is not None:
                    sums.add(part, by_projected_MV, states_MD, cast_weight_VD)
                del by_projected_MV
        ctx.save_for_backward(sums.by_states_ND, sums.by_weight_VD, sums.by_bias_V)
        sums_P = torch.stack(values).sum(0)
        ctx.mark_non_differentiable(sums_P)
        return torch.stack(losses).sum(), sums_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # In place, because the weight's gradient is large; autograd refuses a second backward through this graph.
        scaled = (None if by_input is None else by_input.mul_(by_loss) for by_input in ctx.saved_tensors)
        return (*scaled, None, None, None)


class _GradientSums:
    """Sums over slices of the gradients for states, weight and bias, as far as they are needed."""

    def __init__(self, sliced: SlicedLogits, states: bool, weight: bool, bias: bool) -> None:
        self.by_states_ND = torch.empty_like(sliced.states_ND) if states else None
        # At least float32, because many slices are added up.
        self.by_weight_VD = torch.zeros_like(sliced.weight_VD, dtype=_wide(sliced.weight_VD)) if weight else None
        self.by_bias_V = None
        if bias:
            assert sliced.bias_V is not None
            self.by_bias_V = torch.zeros_like(sliced.bias_V, dtype=_wide(sliced.bias_V))

    def add(self, part: slice, by_projected_MV: Tensor, states_MD: Tensor, weight_VD: Tensor) -> None:
        """Add the gradients of one slice."""
        if self.by_bias_V is not None:
            self.by_bias_V += by_projected_MV.sum(0)
        # Not in float16: the loss scale that keeps float16 gradients from vanishing is applied later, in backward.
        dtype = torch.float32 if weight_VD.dtype == torch.float16 else weight_VD.dtype
        by_projected_MV = by_projected_MV.to(dtype)
        if self.by_states_ND is not None:
            self.by_states_ND[part] = by_projected_MV @ weight_VD.to(dtype)
        if self.by_weight_VD is not None and self.by_weight_VD.dtype == dtype:
            self.by_weight_VD.addmm_(by_projected_MV.T, states_MD.to(dtype))
        elif self.by_weight_VD is not None:
            self.by_weight_VD += by_projected_MV.T @ states_MD.to(dtype)


def _no_autocast(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(_wide(values))


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
