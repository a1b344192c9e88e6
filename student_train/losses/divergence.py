"""How far the student's distribution is from the teacher's: forward, reverse and Jensen-Shannon, from logits.

Each value comes with its gradient, from a formula: over a vocabulary, autograd would keep five tensors as large as the
logits, and take the exponential twice.

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
# What stands for log 0 where the student's mass is measured by the teacher's: what lies below is lost in a dump.
LEAST_LOG_PROB = -30.0


@dataclass(frozen=True)
class Divergence:
    """Which one. With p of the teacher, q of the student, and m = beta p + (1 - beta) q:

    "forward": KL(p || q), sum of p log(p / q): the student covers whatever the teacher does.
    "reverse": KL(q || p), sum of q log(q / p): the student goes only where the teacher goes. Gu et al. 2024, "MiniLLM"
    (arXiv 2306.08543), section 2.1. A class that the teacher rules out counts as e^-30, so that it is finite.
    "js": beta KL(p || m) + (1 - beta) KL(q || m), the generalised Jensen-Shannon divergence of Agarwal et al. 2023,
    "On-Policy Distillation of Language Models" (GKD, arXiv 2306.13649), section 2. Over beta it becomes the forward
    divergence as beta nears 0, and over 1 - beta the reverse one as beta nears 1.
    """

    kind: Literal["forward", "reverse", "js"] = "forward"
    beta: float = 0.5

    def __call__(self, student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
        """values_N between the softmaxes of two sets of logits, of which -inf is a class without mass. Gradients go to
        the student alone. A row of the teacher that is nothing but -inf says nothing, and is a zero."""
        dtype = torch.promote_types(torch.promote_types(student_NC.dtype, teacher_NC.dtype), torch.float32)
        values_N: Tensor = _Divergence.apply(student_NC.to(dtype), teacher_NC.to(dtype), self)
        return values_N

    def of(self, log_p_NC: Tensor, log_q_NC: Tensor) -> tuple[Tensor, Tensor]:
        """(values_N, their gradient_NC by the logits of q). Overwrites both arguments."""
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
        # The derivatives of m by q cancel out: what is left is that of q log q, with m held fast.
        ratio_NC = log_q_NC.sub_(log_m_NC).masked_fill_(q_NC == 0, 0.0)
        from_q_N = (q_NC * ratio_NC).sum(1)
        gradient_NC = ratio_NC.sub_(from_q_N[:, None]).mul_(q_NC).mul_(1 - self.beta)
        return self.beta * from_p_N + (1 - self.beta) * from_q_N, gradient_NC


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_NC: Tensor, teacher_NC: Tensor, divergence: Divergence) -> Tensor:
        # Such a row's log-softmax is NaN, which is wiped out of the value here and of the gradient below.
        says_nothing_N1 = teacher_NC.amax(1, keepdim=True) == NO_MASS
        values_N, gradient_NC = divergence.of(teacher_NC.log_softmax(1), student_NC.log_softmax(1))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(gradient_NC, says_nothing_N1)
        return values_N.masked_fill(says_nothing_N1[:, 0], 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_values_N: Tensor) -> tuple[Tensor, None, None]:
        gradient_NC, says_nothing_N1 = ctx.saved_tensors
        return (gradient_NC * by_values_N[:, None]).masked_fill_(says_nothing_N1, 0.0), None, None
