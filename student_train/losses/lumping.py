"""The logits of a vocabulary, reduced to those of a few classes: some ids, and all others lumped into one class.

A loss on some ids and the rest works on the remaining [N, K + 1] logits, where autograd costs next to nothing. Only
this step processes the whole vocabulary, and one softmax gives both its value and its gradient.

Shapes: N positions, M of them at a time, V vocabulary, K ids with a class of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NO_MASS = float("-inf")
# Number of logits whose softmax is computed at a time, before it replaces them.
SOFTMAX_VALUES = {"cuda": 2**25, "cpu": 2**20}


def lump(logits_NV: Tensor, ids_NK: Tensor, is_kept_NK: Tensor, overwrite: bool = False) -> Tensor:
    """Return logits [N, K + 1]: those of the K ids, and last that of the rest, the log of the sum of the exponentials
    of all other logits (-inf if there are none).

    Where `is_kept_NK` is False, the id is padding without meaning, and its logit is -inf. With `overwrite` the logits
    are overwritten, and no other tensor of their size is allocated, forward or backward; backward can run once only.

    >>> lump(torch.zeros(1, 9), torch.tensor([[4]]), torch.tensor([[True]])).exp()
    tensor([[1., 8.]])
    """
    classes: Tensor = _Lump.apply(logits_NV, ids_NK, is_kept_NK, overwrite)
    return classes


class _Lump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, ids_NK: Tensor, is_kept_NK: Tensor, overwrite: bool) -> Tensor:
        kept_NK = logits_NV.gather(1, ids_NK).masked_fill(~is_kept_NK, NO_MASS)
        # The rest is summed by itself: 1 - sum(kept) would lose all its digits, and its gradient would explode, when
        # nearly all mass is on the kept ids, which is where a good student ends.
        rest_NV = logits_NV.detach() if overwrite else logits_NV.clone()
        # Padding masks the row's first kept id, which is masked anyway. (A row of nothing but padding loses one id, but
        # its only class, the rest, has probability 1 in any case.)
        first_N1 = ids_NK.gather(1, is_kept_NK.byte().argmax(1, keepdim=True)) if ids_NK.shape[1] else ids_NK
        rest_NV.scatter_(1, torch.where(is_kept_NK, ids_NK, first_N1), NO_MASS)
        largest_N1 = rest_NV.amax(1, keepdim=True)
        nothing_N1 = largest_N1 == NO_MASS
        rows = max(1, SOFTMAX_VALUES.get(rest_NV.device.type, SOFTMAX_VALUES["cpu"]) // rest_NV.shape[1])
        for rest_MV, nothing_M1 in zip(rest_NV.split(rows), nothing_N1.split(rows), strict=True):
            # The softmax of a row without a rest would be NaN.
            torch.where(nothing_M1, torch.zeros_like(largest_N1[:1]), rest_MV.softmax(1), out=rest_MV)
        # The largest value of a softmax is 1 / sum(exp(logits - largest)).
        log_sum_N1 = (largest_N1 - rest_NV.amax(1, keepdim=True).log()).masked_fill(nothing_N1, NO_MASS)
        ctx.save_for_backward(rest_NV, ids_NK, is_kept_NK, nothing_N1)
        ctx.overwrite = overwrite
        return torch.cat([kept_NK, log_sum_N1], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_classes_NC: Tensor) -> tuple[Tensor | None, ...]:
        rest_NV, ids_NK, is_kept_NK, nothing_N1 = ctx.saved_tensors
        by_rest_N1 = by_classes_NC[:, -1:].masked_fill(nothing_N1, 0.0)
        by_logits_NV = rest_NV.mul_(by_rest_N1) if ctx.overwrite else rest_NV * by_rest_N1
        by_kept_NK = by_classes_NC[:, :-1].masked_fill(~is_kept_NK, 0.0)
        return by_logits_NV.scatter_add_(1, ids_NK, by_kept_NK), None, None, None
