"""The teacher's vectors as the dump's codes, and hidden-state losses that decode them slice by slice.

A batch of vectors in float32 is four or eight times its codes, and a projection of the student's to the teacher's width
is as large again; neither exists here for more than a slice of tokens. Gradients are formed in the same pass, so that
nothing is decoded twice and backward only scales them.

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

# Numbers of a slice of vectors.
SLICE_NUMBERS = 2**20

Compare = Callable[[Tensor, Tensor], Tensor]
# Which of a row's vectors stand for it.
OneOfRow = Literal["first", "mean"]


class Vectors(Protocol):
    """Vectors that are decoded a slice at a time."""

    @property
    def width(self) -> int:
        """Numbers of a vector."""

    def decode(self, part: slice) -> Tensor:
        """float32 vectors [N, D] of a slice of them."""


@dataclass(frozen=True)
class TeacherVectors:
    """One signal's vectors of a batch, [T, D], still encoded: `columns` are those of the codec."""

    codec: VectorCodec
    columns: dict[str, Tensor]

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.codec.width

    def decode(self, tokens: slice | Tensor) -> Tensor:
        """float32 vectors of some tokens, a slice or indices [N] of them."""
        return self.codec.decode({column.name: self.columns[column.name][tokens] for column in self.codec.columns})


@dataclass(frozen=True)
class RowVectors:
    """The teacher's [R, D]: the vector of each row's first token, or the mean over its tokens. `lengths` are the tokens
    of each row, at least one; rows lie one after the other."""

    tokens: TeacherVectors
    lengths: Sequence[int]
    of_row: OneOfRow

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.tokens.width

    def decode(self, part: slice) -> Tensor:
        """float32 vectors of some rows; for a mean, no more tokens at a time than a slice has room for."""
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
    """The student's [R, D] beside `RowVectors`, with gradients; means are made in float32 at least."""
    lengths_R = torch.tensor(lengths, device=states_TD.device)
    if of_row == "first":
        return states_TD[lengths_R.cumsum(0) - lengths_R]
    states_TD = states_TD.to(torch.promote_types(states_TD.dtype, torch.float32))
    row_of_T = torch.arange(len(lengths_R), device=states_TD.device).repeat_interleave(lengths_R)
    sums_RD = states_TD.new_zeros(len(lengths_R), states_TD.shape[1]).index_add(0, row_of_T, states_TD)
    return sums_RD / lengths_R[:, None]


def compared_in_slices(student_TD: Tensor, projection: nn.Module | None, teacher: Vectors, compare: Compare) -> Tensor:
    """compare(projection(student_TD), the teacher's vectors), where `compare` is a mean over vectors.

    In float32 even where a training step has autocast on; the student's may be of any floating type.
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
            # Not the student's own tensor: its gradient would be as large as the batch, for each slice.
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
