"""The teacher's vectors, encoded as in the dump, and hidden-state losses that decode them slice by slice.

A batch of vectors in float32 takes four or eight times the memory of its codes, and the student's vectors projected to
the teacher's width take as much again; here both exist for one slice of tokens at a time. Gradients are computed in the
same pass, so that nothing is decoded twice; backward only scales them.

Shapes: T tokens without padding, N of a slice, R rows, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shared.dump.codecs import VectorCodec
from shared.dump.weights.projections import Projections

# Size of a slice of vectors, in numbers.
SLICE_NUMBERS = 2**20

Compare = Callable[[Tensor, Tensor], Tensor]
# Which vector represents a row: that of its first token, or the mean over its tokens.
OneOfRow = Literal["first", "mean"]


class Vectors(Protocol):
    """Vectors that are decoded a slice at a time."""

    @property
    def width(self) -> int:
        """The width D of a vector."""

    def decode(self, part: slice) -> Tensor:
        """Return the float32 vectors [N, D] of a slice."""


@dataclass(frozen=True)
class TeacherVectors:
    """The vectors [T, D] of one signal for a batch, still encoded in the `columns` of the codec."""

    codec: VectorCodec
    columns: dict[str, Tensor]

    @property
    def width(self) -> int:
        """The width D of a vector."""
        return self.codec.width

    def decode(self, tokens: slice | Tensor) -> Tensor:
        """Return the float32 vectors [N, D] of some tokens, given as a slice or as indices [N]."""
        return self.codec.decode({column.name: self.columns[column.name][tokens] for column in self.codec.columns})


@dataclass(frozen=True)
class ProjectedVectors(TeacherVectors):
    """The queries, keys or values (`part`) [T, D] of a layer for a batch, computed from the layer's encoded inputs.

    Attributes:
        places_T: each token's place in its row, from 0.
    """

    part: str
    projections: Projections
    places_T: Tensor

    @property
    def width(self) -> int:
        return self.projections.facts.part(self.part).width

    def decode(self, tokens: slice | Tensor) -> Tensor:
        return self.projections.part(self.part, super().decode(tokens), self.places_T[tokens])


@dataclass(frozen=True)
class RowVectors:
    """The teacher's vectors [R, D] of rows: that of the first token, or the mean over the row's tokens.

    Attributes:
        lengths: tokens of each row, at least one; rows lie one after the other.
    """

    tokens: TeacherVectors
    lengths: Sequence[int]
    of_row: OneOfRow

    @property
    def width(self) -> int:
        """The width D of a vector."""
        return self.tokens.width

    def decode(self, part: slice) -> Tensor:
        """Return the float32 vectors of some rows; means decode no more tokens at a time than fit in a slice."""
        starts = list(accumulate(self.lengths, initial=0))[part.start : part.stop + 1]
        device = next(iter(self.tokens.columns.values())).device
        if self.of_row == "first":
            return self.tokens.decode(torch.tensor(starts[:-1], device=device))
        lengths_R = torch.tensor(self.lengths[part], device=device)
        row_of_T = torch.arange(len(lengths_R), device=device).repeat_interleave(lengths_R)
        sums_RD = torch.zeros(len(lengths_R), self.width, device=device)
        at_once = max(1, SLICE_NUMBERS // self.width)
        for start in range(starts[0], starts[-1], at_once):
            end = min(start + at_once, starts[-1])
            sums_RD.index_add_(0, row_of_T[start - starts[0] : end - starts[0]], self.tokens.decode(slice(start, end)))
        return sums_RD / lengths_R[:, None]


def one_of_each_row(states_TD: Tensor, lengths: Sequence[int], of_row: OneOfRow) -> Tensor:
    """Return the student's vectors [R, D] of rows, with gradients, as `RowVectors` are for the teacher; means are
    computed in float32 or wider."""
    lengths_R = torch.tensor(lengths, device=states_TD.device)
    if of_row == "first":
        return states_TD[lengths_R.cumsum(0) - lengths_R]
    states_TD = states_TD.to(torch.promote_types(states_TD.dtype, torch.float32))
    row_of_T = torch.arange(len(lengths_R), device=states_TD.device).repeat_interleave(lengths_R)
    sums_RD = states_TD.new_zeros(len(lengths_R), states_TD.shape[1]).index_add(0, row_of_T, states_TD)
    return sums_RD / lengths_R[:, None]


def compared_in_slices(student_TD: Tensor, projection: nn.Module | None, teacher: Vectors, compare: Compare) -> Tensor:
    """Return compare(projection(student_TD), teacher's vectors), computed in slices; `compare` is a mean over vectors.

    It is computed in float32 even under autocast; `student_TD` may have any floating type.
    """
    parameters = () if projection is None else tuple(projection.parameters())
    return _Slices.apply(student_TD, projection, teacher, compare, *parameters)


class _Slices(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_TD: Tensor,
        projection: nn.Module | None,
        teacher: Vectors,
        compare: Compare,
        *parameters: Tensor,
    ) -> Tensor:
        dtype = torch.promote_types(student_TD.dtype, torch.float32)
        needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]]
        total = student_TD.new_zeros((), dtype=dtype)
        grad_TD = torch.zeros_like(student_TD, dtype=dtype) if needs[0] else None
        grads = [torch.zeros_like(parameter) for parameter in parameters]
        tokens = len(student_TD)
        at_once = max(1, SLICE_NUMBERS // max(student_TD.shape[1], teacher.width))
        for start in range(0, tokens, at_once):
            part = slice(start, min(start + at_once, tokens))
            # Detached, because the gradient for the student's own tensor would be as large as the batch for each slice.
            states_ND = student_TD[part].detach().to(dtype).requires_grad_(needs[0])
            with torch.enable_grad(), torch.autocast(student_TD.device.type, enabled=False):
                projected_ND = states_ND if projection is None else projection(states_ND)
                value = compare(projected_ND, teacher.decode(part)) * (part.stop - part.start) / tokens
            total += value.detach()
            leaves = [leaf for leaf, needed in zip((states_ND, *parameters), needs, strict=True) if needed]
            found = iter(torch.autograd.grad(value, leaves) if leaves else ())
            if grad_TD is not None:
                grad_TD[part] = next(found)
            for grad, needed in zip(grads, needs[1:], strict=True):
                if needed:
                    grad += next(found)
        ctx.save_for_backward(grad_TD, *grads)
        ctx.dtype = student_TD.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_TD, *grads = ctx.saved_tensors
        scaled_TD = None if grad_TD is None else (grad_TD * grad).to(ctx.dtype)
        return (scaled_TD, None, None, None, *(each * grad for each in grads))
