"""A student's output projection and the losses of its logits, slice by slice.

Of 2,048 positions and a vocabulary of 152,000, logits are 1.2 GB, and autograd keeps their log-softmax and makes their
gradient, as large again. Here a slice of positions at a time is projected and judged, and what its gradient does to
states, weight and bias is added up at once, in the forward pass: backward only scales the sums. Neither logits nor
their gradient exist for more than a slice, and nothing is computed twice. (The idea is that of Hsu et al. 2024, "Liger
Kernel", arXiv 2410.10989, section 3.2, for cross-entropy.)

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

# Logits of a slice. A CPU's matrix products want some 200 positions: with 152,064 ids and 512 numbers wide, slices of
# 64 took 6.4 ms a position for all three of them, 128 5.4, 256 and more 5.1.
SLICE_VALUES = {"cuda": 2**27, "cpu": 2**25}
FEWEST_POSITIONS = 64

# Which positions, and their logits_MV -> (the number to descend, parts_P that are shown).
Judge = Callable[[slice, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SlicedLogits:
    """Logits at N positions that are made when they are asked for.

    Attributes:
        states_ND: what goes into the projection, part of the student's graph.
        weight_VD, bias_V: the projection's.
        after: what follows it.
        dtype: what the student would compute the projection in (half precision under autocast).
    """

    states_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    after: LogitStep
    dtype: torch.dtype

    def slices(self) -> Iterator[slice]:
        """Runs of positions, in order; an empty one where there are none."""
        values = SLICE_VALUES.get(self.states_ND.device.type, SLICE_VALUES["cpu"])
        step = max(FEWEST_POSITIONS, values // self.weight_VD.shape[0])
        count = len(self.states_ND)
        for start in range(0, max(count, 1), step):
            yield slice(start, min(start + step, count))

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Each slice and its logits_MV, to look at: without gradients."""
        with torch.no_grad(), _no_autocast(self.states_ND):
            weight_VD, bias_V = self._cast()
            for part in self.slices():
                states_MD = self.states_ND[part].to(self.dtype)
                yield part, self.after(_at_least_float32(functional.linear(states_MD, weight_VD, bias_V)))

    def judged(self, judge: Judge) -> tuple[Tensor, Tensor]:
        """(total, parts_P) of the judge summed over all slices; the total is part of the graph, and goes backward once.

        The judge gets logits in float32 at least, and must count a slice as its share of the whole.
        """
        total, parts_P = _Judged.apply(
            self.states_ND, self.weight_VD, self.bias_V, self, judge, torch.is_grad_enabled()
        )
        return total, parts_P

    def _cast(self) -> tuple[Tensor, Tensor | None]:
        return self.weight_VD.to(self.dtype), None if self.bias_V is None else self.bias_V.to(self.dtype)


class _Judged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        sliced: SlicedLogits,
        judge: Judge,
        in_training: bool,
    ) -> tuple[Tensor, Tensor]:
        needs = [needed and in_training for needed in ctx.needs_input_grad[:3]]
        sums = _Sums(sliced, *needs)
        totals, parts = [], []
        with _no_autocast(states_ND):
            cast_weight_VD, cast_bias_V = sliced._cast()
            for part in sliced.slices():
                states_MD = states_ND[part].to(sliced.dtype)
                projected_MV = _at_least_float32(functional.linear(states_MD, cast_weight_VD, cast_bias_V))
                with torch.set_grad_enabled(any(needs)):
                    total, parts_P = judge(part, sliced.after(projected_MV.requires_grad_(any(needs))))
                totals.append(total.detach())
                parts.append(parts_P.detach())
                by_projected_MV = torch.autograd.grad(total, projected_MV)[0] if any(needs) else None
                # The graph holds the logits: it goes before the next slice's are made.
                del total, parts_P, projected_MV
                if by_projected_MV is not None:
                    sums.add(part, by_projected_MV, states_MD, cast_weight_VD)
                del by_projected_MV
        ctx.save_for_backward(sums.by_states_ND, sums.by_weight_VD, sums.by_bias_V)
        sums_P = torch.stack(parts).sum(0)
        ctx.mark_non_differentiable(sums_P)
        return torch.stack(totals).sum(), sums_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # In place, for the weight's gradient is large; a second time through the same graph, autograd refuses.
        scaled = (None if by_input is None else by_input.mul_(by_total) for by_input in ctx.saved_tensors)
        return (*scaled, None, None, None)


class _Sums:
    """Gradients with respect to states, weight and bias, as far as they are needed, while slices are added up."""

    def __init__(self, sliced: SlicedLogits, states: bool, weight: bool, bias: bool) -> None:
        self.by_states_ND = torch.empty_like(sliced.states_ND) if states else None
        # Many slices are added up: not in half precision.
        self.by_weight_VD = torch.zeros_like(sliced.weight_VD, dtype=_wide(sliced.weight_VD)) if weight else None
        self.by_bias_V = None
        if bias:
            assert sliced.bias_V is not None
            self.by_bias_V = torch.zeros_like(sliced.bias_V, dtype=_wide(sliced.bias_V))

    def add(self, part: slice, by_projected_MV: Tensor, states_MD: Tensor, weight_VD: Tensor) -> None:
        """One slice's."""
        if self.by_bias_V is not None:
            self.by_bias_V += by_projected_MV.sum(0)
        # The factor that keeps float16's gradients from vanishing is multiplied in later, in backward.
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
