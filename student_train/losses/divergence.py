"""Divergences between the teacher's and the student's distribution, from logits: forward, reverse and Jensen-Shannon.

Each value is computed together with its gradient, from a formula: for a vocabulary, autograd would keep five tensors as
large as the logits, and compute the exponential twice.

Shapes: N positions, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NO_MASS = float("-inf")
# Used in place of log 0 in the reverse divergence; a dump does not keep smaller log-probabilities.
LEAST_LOG_PROB = -30.0


@dataclass(frozen=True)
class Divergence:
    """A divergence. With p of the teacher, q of the student, and m = beta p + (1 - beta) q:

    "forward": KL(p || q), sum of p log(p / q): the student covers whatever the teacher does.
    "reverse": KL(q || p), sum of q log(q / p): the student goes only where the teacher goes. Gu et al. 2024, "MiniLLM"
    (arXiv 2306.08543), section 2.1. A class with p = 0 counts as p = e^-30, so that the value is finite.
    "js": beta KL(p || m) + (1 - beta) KL(q || m), the generalised Jensen-Shannon divergence of Agarwal et al. 2023,
    "On-Policy Distillation of Language Models" (GKD, arXiv 2306.13649), section 2. Divided by beta, it approaches the
    forward divergence as beta approaches 0; divided by 1 - beta, the reverse one as beta approaches 1.
    """

    kind: Literal["forward", "reverse", "js"] = "forward"
    beta: float = 0.5

    def __call__(self, student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
        """Return values_N, the divergences between the softmaxes of two sets of logits.

        A logit of -inf is a class without mass. Only the student gets gradients. A row whose teacher logits are all
        -inf (no target) has the value 0.
        """
        dtype = torch.promote_types(torch.promote_types(student_NC.dtype, teacher_NC.dtype), torch.float32)
        values_N: Tensor = _Divergence.apply(student_NC.to(dtype), teacher_NC.to(dtype), self)
        return values_N

    def of(self, log_p_NC: Tensor, log_q_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return (values_N, their gradient_NC for the logits of q). Overwrites both arguments."""
        q_NC = log_q_NC.exp()
        if self.kind == "forward":
            p_NC = log_p_NC.exp()
            ratio_NC = log_p_NC.sub_(log_q_NC).masked_fill_(p_NC == 0, 0.0)
            return ratio_NC.mul_(p_NC).sum(1), q_NC.sub_(p_NC)
        if self.kind == "reverse":
            least_NC = log_p_NC.masked_fill_(log_p_NC == NO_MASS, LEAST_LOG_PROB)
            ratio_NC = log_q_NC.sub_(least_NC).masked_fill_(q_NC == 0, 0.0)
            values_N = (q_NC * ratio_NC).sum(1)
            return values_N, ratio_NC.sub_(values_N[:, None]).mul_(q_NC)
        p_NC = log_p_NC.exp()
        log_m_NC = torch.logaddexp(log_p_NC + math.log(self.beta), log_q_NC + math.log1p(-self.beta))
        from_p_N = log_p_NC.sub_(log_m_NC).masked_fill_(p_NC == 0, 0.0).mul_(p_NC).sum(1)
        # The derivatives of m by q cancel out: the gradient is that of q log (q / m) with m held constant.
        ratio_NC = log_q_NC.sub_(log_m_NC).masked_fill_(q_NC == 0, 0.0)
        from_q_N = (q_NC * ratio_NC).sum(1)
        gradient_NC = ratio_NC.sub_(from_q_N[:, None]).mul_(q_NC).mul_(1 - self.beta)
        return self.beta * from_p_N + (1 - self.beta) * from_q_N, gradient_NC


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_NC: Tensor, teacher_NC: Tensor, divergence: Divergence) -> Tensor:
        # The log-softmax of a row without a target is NaN; it is masked in the value here and in the gradient below.
        no_target_N1 = teacher_NC.amax(1, keepdim=True) == NO_MASS
        values_N, gradient_NC = divergence.of(teacher_NC.log_softmax(1), student_NC.log_softmax(1))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(gradient_NC, no_target_N1)
        return values_N.masked_fill(no_target_N1[:, 0], 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_values_N: Tensor) -> tuple[Tensor, None, None]:
        gradient_NC, no_target_N1 = ctx.saved_tensors
        return (gradient_NC * by_values_N[:, None]).masked_fill_(no_target_N1, 0.0), None, None
