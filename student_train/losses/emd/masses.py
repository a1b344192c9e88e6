"""The masses of layers, and cost attention, which moves them: layers that are cheap to imitate get more.

Masses are buffers of a module that is kept in checkpoints, so that a killed run goes on with them.

Shapes: M layers of the student, N of the teacher.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# The largest mass is at most this many times the smallest one. A layer without mass could never get any back.
MOST_RATIO = 1000.0


def cost_attention(masses_M: Tensor, transported_M: Tensor) -> Tensor:
    """Return new masses, in proportion to the reciprocal cost of a layer for each unit of its mass.

    With c_i = (sum over j of F_ij D_ij) / w_i, the new w_i is in proportion to 1 / c_i, and all add up to 1: the rule
    of the code of BERT-EMD (github.com/lxk00/BERT-EMD) since 2021, in place of the paper's softmax. A cost below a
    thousandth of the largest counts as that thousandth, so that no layer is left without mass.

    Args:
        transported_M: the sum over j of F_ij D_ij for each layer.

    >>> cost_attention(torch.tensor([0.5, 0.5]), torch.tensor([0.1, 0.3]))
    tensor([0.7500, 0.2500])
    """
    costs_M = transported_M / masses_M
    if not bool((costs_M.isfinite().all()) & (costs_M.max() > 0)):
        return masses_M
    reciprocal_M = 1 / costs_M.clamp(min=costs_M.max() / MOST_RATIO)
    return reciprocal_M / reciprocal_M.sum()


class LayerMasses(nn.Module):
    """The masses of the student's layers, `student_M`, and of the teacher's, `teacher_N`; equal at first."""

    student_M: Tensor
    teacher_N: Tensor

    def __init__(self, student_layers: int, teacher_layers: int) -> None:
        super().__init__()
        self.register_buffer("student_M", torch.full((student_layers,), 1 / student_layers))
        self.register_buffer("teacher_N", torch.full((teacher_layers,), 1 / teacher_layers))

    def moved(self, flow_MN: Tensor, costs_MN: Tensor) -> tuple[Tensor, Tensor]:
        """Return both masses after cost attention, in float64 on the CPU."""
        transported_MN = flow_MN * costs_MN.double().cpu()
        return (
            cost_attention(self.student_M.double().cpu(), transported_MN.sum(1)),
            cost_attention(self.teacher_N.double().cpu(), transported_MN.sum(0)),
        )

    def set(self, student_M: Tensor, teacher_N: Tensor) -> None:
        """Set both masses."""
        self.student_M.copy_(student_M)
        self.teacher_N.copy_(teacher_N)


def set_to_mean(masses: Sequence[LayerMasses], moved: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Set all masses to the mean of those that were moved, so that hidden states and attention have the same ones."""
    students, teachers = zip(*moved, strict=True)
    for each in masses:
        each.set(torch.stack(students).mean(0), torch.stack(teachers).mean(0))
