"""What is compared between layers: hidden states, and attention scores; costs without and losses with gradients.

All pairs of layers cost M x N means over a batch. Here the vectors of all layers are decoded for a slice of tokens or
rows at a time, and gradients are computed for those pairs alone between which something flows: M + N - 1 at most.

Shapes:
    M  layers of the student                 N  layers of the teacher
    T  tokens without padding, S of a sample, B of a slice
    D  width of the teacher                  W  width of all layers of the student together
    G, U, L  as in `relation_formulas`
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn

from student_train.forward import teacher_vectors
from student_train.forward.attention import Attended
from student_train.forward.teacher_vectors import TeacherVectors, compared_in_slices
from student_train.losses.formulas import hidden_mse
from student_train.losses.relation_formulas import decoded, relation_loss, runs, scores, slices, split_heads


@dataclass(frozen=True)
class Sample:
    """Some rows of a batch.

    Attributes:
        tokens_S: numbers of their tokens in the batch.
        lengths: tokens of each of them, at least one.
    """

    tokens_S: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Sequence[int], most_tokens: int | None, device: torch.device) -> "Sample":
        """Return every k-th row of a batch, so that they have about `most_tokens` tokens; None for all rows."""
        starts = [0, *accumulate(lengths)]
        rows = [row for row, length in enumerate(lengths) if length]
        if most_tokens is not None and starts[-1] > most_tokens:
            rows = rows[:: -(-starts[-1] // most_tokens)]
        tokens = [torch.arange(starts[row], starts[row + 1], device=device) for row in rows]
        tokens_S = torch.cat(tokens) if tokens else torch.zeros(0, dtype=torch.long, device=device)
        return cls(tokens_S, tuple(lengths[row] for row in rows))


class Terms(Protocol):
    """One kind of things that layers are compared by."""

    def costs(self, sample: Sample) -> Tensor:
        """Return the costs D [M, N] of all pairs of layers, means over a sample, without gradients."""

    def loss(self, flow_MN: Tensor) -> Tensor:
        """Return the sum of F_ij D_ij over the whole batch, with gradients for the student."""


class LayerProjections(nn.Module):
    """Linear maps from the hidden states of the student's layers to the teacher's width, where the widths differ: one
    for each layer, or one for all of them.

    Args:
        widths: those of the student's layers; equal ones, if they share a map.
    """

    def __init__(self, widths: Sequence[int], teacher_width: int, is_shared: bool) -> None:
        super().__init__()
        self.widths = list(widths)
        self.linears = nn.ModuleList(
            nn.Identity() if width == teacher_width else nn.Linear(width, teacher_width)
            for width in (self.widths[:1] if is_shared else self.widths)
        )

    def forward(self, states_BW: Tensor) -> Tensor:
        """Return the projected states [B, M, D] of all layers, which lie side by side."""
        layers = states_BW.split(self.widths, dim=1)
        linears = list(self.linears) if len(self.linears) == len(layers) else list(self.linears) * len(layers)
        return torch.stack([linear(layer) for linear, layer in zip(linears, layers, strict=True)], 1)


@dataclass(frozen=True)
class _SideBySide:
    """The vectors of all layers of the teacher, decoded together as [B, N, D]."""

    layers: Sequence[TeacherVectors]

    @property
    def width(self) -> int:
        """How many numbers belong to a token."""
        return sum(layer.width for layer in self.layers)

    def decode(self, tokens: slice | Tensor) -> Tensor:
        """Return the vectors of some tokens."""
        return torch.stack([layer.decode(tokens) for layer in self.layers], 1)


@dataclass(frozen=True)
class HiddenTerms:
    """Hidden states: the costs are mean squared differences, over tokens and width.

    Attributes:
        student: the states [T, width] of each layer of the student.
        teacher: those of the teacher's layers, still encoded.
    """

    student: Sequence[Tensor]
    teacher: Sequence[TeacherVectors]
    projection: LayerProjections

    def costs(self, sample: Sample) -> Tensor:
        """Return the costs D [M, N] of all pairs of layers."""
        together, first = _SideBySide(self.teacher), self.student[0]
        totals_MN = first.new_zeros(len(self.student), len(self.teacher), dtype=_wide(first))
        at_once = max(1, teacher_vectors.SLICE_NUMBERS // max(together.width, sum(self.projection.widths)))
        with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
            for tokens_B in sample.tokens_S.split(at_once):
                states_BW = torch.cat([layer[tokens_B].to(totals_MN.dtype) for layer in self.student], 1)
                own_BMD, teacher_BND = self.projection(states_BW), together.decode(tokens_B)
                for layer in range(len(self.student)):
                    difference_BND = own_BMD[:, layer, None] - teacher_BND
                    totals_MN[layer] += difference_BND.square_().sum((0, 2))
        return totals_MN / max(1, len(sample.tokens_S) * self.teacher[0].width)

    def loss(self, flow_MN: Tensor) -> Tensor:
        """Return the sum of F_ij D_ij; all linear maps have a part in it."""
        pairs = _flowing(flow_MN)

        def compare(own_BMD: Tensor, teacher_BND: Tensor) -> Tensor:
            parts = [flow * hidden_mse(own_BMD[:, layer], teacher_BND[:, other]) for layer, other, flow in pairs]
            return torch.stack(parts).sum()

        states_TW = torch.cat(list(self.student), 1)
        return compared_in_slices(states_TW, self.projection, _SideBySide(self.teacher), compare)


@dataclass(frozen=True)
class AttentionTerms:
    """Attention scores before the softmax, head by head: the costs are mean squared differences, over heads, tokens and
    the tokens of their rows; scores of later tokens are 0 in causal attention.

    Attributes:
        student: queries and keys of each layer of the student.
        teacher: (queries, keys) of each layer of the teacher, still encoded, with as many heads.
    """

    student: Sequence[Attended]
    teacher: Sequence[tuple[TeacherVectors, TeacherVectors]]

    def costs(self, sample: Sample) -> Tensor:
        """Return the costs D [M, N] of all pairs of layers."""
        heads, is_causal, first = self.student[0].heads, self.student[0].is_causal, self.student[0].parts_TD["queries"]
        totals_MN = first.new_zeros(len(self.student), len(self.teacher), dtype=_wide(first))
        dtype, layers = totals_MN.dtype, len(self.student) + len(self.teacher)
        widest = max(first.shape[1], self.teacher[0][0].width)
        with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
            for index_RL in runs(sample.lengths, heads, widest * layers):
                index_RL = sample.tokens_S[index_RL.to(first.device)]
                students = [
                    [split_heads(each.parts_TD[part][index_RL].to(dtype), heads) for part in ("queries", "keys")]
                    for each in self.student
                ]
                teachers = [
                    [split_heads(decoded(part, index_RL).to(dtype), heads) for part in each] for each in self.teacher
                ]
                for matrices, tokens in slices(*students[0][0].shape[:2]):
                    own_GUL = [
                        scores(left[matrices, tokens], right[matrices], tokens, is_causal) for left, right in students
                    ]
                    for column, (left, right) in enumerate(teachers):
                        other_GUL = scores(left[matrices, tokens], right[matrices], tokens, is_causal)
                        for row, each_GUL in enumerate(own_GUL):
                            totals_MN[row, column] += (each_GUL - other_GUL).square_().sum() / index_RL.shape[1]
        return totals_MN / max(1, len(sample.tokens_S) * heads)

    def loss(self, flow_MN: Tensor) -> Tensor:
        """Return the sum of F_ij D_ij."""
        parts = []
        for layer, other, flow in _flowing(flow_MN):
            own = self.student[layer]
            both = own.parts_TD["queries"], own.parts_TD["keys"]
            value = relation_loss(both, self.teacher[other], own.lengths, own.heads, own.is_causal, "scores-mse")
            parts.append(flow * value)
        return torch.stack(parts).sum()


def _flowing(flow_MN: Tensor) -> list[tuple[int, int, float]]:
    """Return (layer of the student, layer of the teacher, flow) where anything flows."""
    return [(layer, other, float(flow_MN[layer, other])) for layer, other in flow_MN.nonzero().tolist()]


def _wide(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)
