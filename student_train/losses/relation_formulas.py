"""Attention relations: the similarities between tokens in a layer's queries, keys or values (MiniLM, MiniLMv2).

The concatenated heads are split into any number of relation heads, so that a student of another width or number of
heads can learn from them. The relations, [L, L] for each row and head, would be far larger than the vectors that they
are computed from; here they exist for a slice of rows, heads and tokens at a time. Gradients are computed in the same
pass, so that nothing is computed twice; backward only scales them. 16 rows of 512 tokens with 12 heads took 43 MB,
where autograd took 983 MB; 32 rows of 20 to 200 tokens took a tenth of the time of padded ones (one CPU).

Shapes:
    T  tokens of all rows, without padding        R  rows of equal length
    L  tokens of a row, U some of them            H  relation heads, G some of them
    W  width of all heads together                D  width of a relation head
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.dump.signals import RELATIONS
from shared.errors import RecipeError
from student_train.forward.attention import Attended
from student_train.forward.teacher_vectors import TeacherVectors

Pair = Literal["queries", "keys", "values", "attention"]
Metric = Literal["kl", "mse", "scores-mse"]
_SIDES: dict[str, tuple[str, str]] = {**{part: (part, part) for part in RELATIONS}, "attention": ("queries", "keys")}

# Size of a slice of relations, in numbers.
SLICE_NUMBERS = 2**20
DEFAULT_HEADS = 12


def parts_of(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Return which of queries, keys and values these pairs need."""
    return tuple(part for part in RELATIONS if any(part in _SIDES[pair] for pair in pairs))


def default_heads(widths: Iterable[int]) -> int:
    """Return 12, or the largest smaller number that divides all widths.

    >>> default_heads([384, 768]), default_heads([128, 1024])
    (12, 8)
    """
    common = math.gcd(*widths)
    return next(heads for heads in range(DEFAULT_HEADS, 0, -1) if common % heads == 0)


def refuse_misfit(
    pairs: Sequence[Pair], heads: int | None, teacher_widths: dict[str, int], student_widths: dict[str, int]
) -> None:
    """Check that relations can be computed for queries, keys and values of these widths. Raises RecipeError if not."""
    for whose, widths in (("teacher", teacher_widths), ("student", student_widths)):
        if "attention" in pairs and widths["queries"] != widths["keys"]:
            raise RecipeError(
                f"the loss 'relations' with the pair \"attention\": the {whose}'s queries are {widths['queries']} wide "
                f'and its keys {widths["keys"]} (grouped-query attention); use pairs = ["queries", "keys", "values"].'
            )
    for part in parts_of(pairs):
        common = math.gcd(teacher_widths[part], student_widths[part])
        if heads is not None and common % heads:
            divisors = ", ".join(str(each) for each in range(1, common + 1) if common % each == 0)
            raise RecipeError(
                f"the loss 'relations' with relation_heads = {heads}: the teacher's {part} are {teacher_widths[part]} "
                f"wide and the student's {student_widths[part]}; numbers that divide both are {divisors}."
            )


def relations_loss(
    student: Attended,
    teacher: dict[str, TeacherVectors],
    pairs: Sequence[Pair],
    heads: int | None,
    metric: Metric = "kl",
) -> Tensor:
    """Return the sum of `relation_loss` over the pairs; `teacher` must have the parts that `parts_of` lists for them.

    "attention" is causal if the student's attention is. The other pairs relate all tokens of a row in any case, because
    a similarity between two tokens gives no information about later tokens.
    """
    parts = parts_of(pairs)
    if heads is None:
        heads = default_heads([teacher[part].width for part in parts] + [student.widths[part] for part in parts])
    total = torch.zeros(())
    for pair in pairs:
        left, right = _SIDES[pair]
        value = relation_loss(
            (student.parts_TD[left], student.parts_TD[right]),
            (teacher[left], teacher[right]),
            student.lengths,
            heads,
            is_causal=pair == "attention" and student.is_causal,
            metric=metric,
        )
        total = total.to(value.device) + value
    return total


def relation_loss(
    student_TW: tuple[Tensor, Tensor],
    teacher: tuple[TeacherVectors, TeacherVectors],
    lengths: Sequence[int],
    heads: int,
    is_causal: bool = False,
    metric: Metric = "kl",
) -> Tensor:
    """KL(teacher || student) of the relations softmax(A B^T / sqrt(D)), mean over tokens and relation heads.

    A and B are both the queries, both the keys or both the values (Wang et al. 2020, "MiniLMv2", arXiv 2012.15828,
    section 3.1), or the queries and the keys, whose relation is the attention itself (Wang et al. 2020, "MiniLM", arXiv
    2002.10957, equation 6). `is_causal` masks later tokens.

    With the metric "mse" it is the mean squared difference of the relations, also over a row's tokens: for attention,
    "XtremeDistilTransformers" (arXiv 2106.04563), as in its code (github.com/microsoft/xtreme-distil-transformers).
    With "scores-mse" it is that of the scores A B^T / sqrt(D) themselves, in which masked ones count as 0 (Jiao et al.
    2020, "TinyBERT", arXiv 1909.10351, equation 7).

    Args:
        student_TW: (A, B), of any floating type; computed in float32.
        teacher: (A, B) of the teacher, whose width may differ.
        lengths: tokens of each row; rows lie one after the other.
        heads: the number of relation heads, which must divide all widths.
    """
    return _Relation.apply(*student_TW, teacher, lengths, heads, is_causal, metric)


class _Relation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        left_TW: Tensor,
        right_TW: Tensor,
        teacher: tuple[TeacherVectors, TeacherVectors],
        lengths: Sequence[int],
        heads: int,
        is_causal: bool,
        metric: Metric,
    ) -> Tensor:
        dtype = torch.promote_types(left_TW.dtype, torch.float32)
        total = left_TW.new_zeros((), dtype=dtype)
        grads_TW: tuple[Tensor, ...] = ()
        if any(ctx.needs_input_grad):
            grads_TW = torch.zeros_like(left_TW, dtype=dtype), torch.zeros_like(right_TW, dtype=dtype)
        widest = max(left_TW.shape[1], *(vectors.width for vectors in teacher))
        with torch.autocast(left_TW.device.type, enabled=False):
            for index_RL in runs(lengths, heads, widest):
                index_RL = index_RL.to(left_TW.device)
                student = [split_heads(side_TW[index_RL].to(dtype), heads) for side_TW in (left_TW, right_TW)]
                # Both are the same vectors if the pair is queries, keys or values, and may be costly to compute.
                own = {id(vectors): decoded(vectors, index_RL).to(dtype) for vectors in teacher}
                target = [split_heads(own[id(vectors)], heads) for vectors in teacher]
                grads = [torch.zeros_like(side) for side in student] if grads_TW else []
                for matrices, tokens in slices(*student[0].shape[:2]):
                    total += _slice_of_relation(student, target, matrices, tokens, is_causal, metric, grads)
                for grad_TW, grad_MLD in zip(grads_TW, grads, strict=True):
                    grad_TW[index_RL] = grad_MLD.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
        compared = max(1, len(left_TW) * heads)
        ctx.save_for_backward(*grads_TW)
        ctx.compared, ctx.dtypes = compared, (left_TW.dtype, right_TW.dtype)
        return total / compared

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            (grad_TW * (grad / ctx.compared)).to(dtype)
            for grad_TW, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None, None, None)


def _slice_of_relation(
    student: list[Tensor],
    teacher: list[Tensor],
    matrices: slice,
    tokens: slice,
    is_causal: bool,
    metric: Metric,
    grads: list[Tensor],
) -> Tensor:
    """Return the sum of the metric over some matrices and tokens; its gradients are added to `grads`, unless empty.

    A and B are [M, L, D], M matrices of rows and heads. The metric gives the gradient for S = A B^T / sqrt(D); it
    follows that dA = dS B / sqrt(D), dB = dS^T A / sqrt(D).
    """
    left_GUD, right_GLD = student[0][matrices, tokens], student[1][matrices]
    relation, compare = _METRICS[metric]
    q_GUL = relation(left_GUD, right_GLD, tokens, is_causal)
    p_GUL = relation(teacher[0][matrices, tokens], teacher[1][matrices], tokens, is_causal)
    value, grad_GUL = compare(p_GUL, q_GUL, is_causal)
    if grads:
        grad_GUL.mul_(left_GUD.shape[-1] ** -0.5)
        grads[0][matrices, tokens] += grad_GUL @ right_GLD
        grads[1][matrices] += grad_GUL.transpose(1, 2) @ left_GUD
    return value


def _kl(log_p_GUL: Tensor, log_q_GUL: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Return (the sum of p (log p - log q), its gradient for the scores of q: q - p). Overwrites both arguments."""
    log_ratio_GUL = log_p_GUL - log_q_GUL
    if is_causal:  # 0 * log 0 is 0
        log_ratio_GUL.masked_fill_(log_p_GUL == float("-inf"), 0.0)
    p_GUL = log_p_GUL.exp_()
    return torch.dot(p_GUL.flatten(), log_ratio_GUL.flatten()), log_q_GUL.exp_().sub_(p_GUL)


def _mse(log_p_GUL: Tensor, log_q_GUL: Tensor, _: bool) -> tuple[Tensor, Tensor]:
    """Return (the sum of (q - p)^2 / L, its gradient for the scores of q). Overwrites both arguments.

    With d = 2 (q - p) / L, the gradient through the softmax is q (d - sum of q d).
    """
    q_GUL, length = log_q_GUL.exp_(), log_q_GUL.shape[-1]
    difference_GUL = q_GUL - log_p_GUL.exp_()
    value = torch.dot(difference_GUL.flatten(), difference_GUL.flatten()) / length
    mean_GU1 = (q_GUL * difference_GUL).sum(-1, keepdim=True)
    return value, difference_GUL.sub_(mean_GU1).mul_(q_GUL).mul_(2 / length)


def _scores_mse(p_GUL: Tensor, q_GUL: Tensor, _: bool) -> tuple[Tensor, Tensor]:
    """Return (the sum of (q - p)^2 / L, its gradient for q), where p and q are scores. Overwrites both arguments."""
    difference_GUL = q_GUL.sub_(p_GUL)
    value = torch.dot(difference_GUL.flatten(), difference_GUL.flatten()) / q_GUL.shape[-1]
    return value, difference_GUL.mul_(2 / q_GUL.shape[-1])


def _log_relation(left_GUD: Tensor, right_GLD: Tensor, tokens: slice, is_causal: bool) -> Tensor:
    return scores(left_GUD, right_GLD, tokens, is_causal, float("-inf")).log_softmax(-1)


def scores(left_GUD: Tensor, right_GLD: Tensor, tokens: slice, is_causal: bool, masked: float = 0.0) -> Tensor:
    """Return A B^T / sqrt(D) for these tokens of A; if it is causal, scores of later tokens are `masked`."""
    scores_GUL = (left_GUD * left_GUD.shape[-1] ** -0.5) @ right_GLD.transpose(1, 2)
    if is_causal:
        place_L = torch.arange(right_GLD.shape[1], device=right_GLD.device)
        scores_GUL.masked_fill_(place_L > place_L[tokens, None], masked)
    return scores_GUL


# Metric -> (what is compared, how).
_METRICS: dict[str, tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]]] = {
    "kl": (_log_relation, _kl),
    "mse": (_log_relation, _mse),
    "scores-mse": (scores, _scores_mse),
}


def runs(lengths: Sequence[int], heads: int, width: int) -> Iterator[Tensor]:
    """Yield indices [R, L] of the tokens of rows of equal length, as many rows as fit in a slice."""
    starts = list(accumulate(lengths, initial=0))
    for length in sorted(set(lengths) - {0}):
        first_R = torch.tensor([start for start, own in zip(starts, lengths, strict=False) if own == length])
        for some_R in first_R.split(max(1, SLICE_NUMBERS // (length * max(heads * length, width)))):
            yield some_R[:, None] + torch.arange(length)


def slices(matrices: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Yield (matrices, tokens) that together cover [matrices, length], each with no more relations than one slice."""
    matrices_at_once = max(1, SLICE_NUMBERS // length**2)
    tokens_at_once = max(1, SLICE_NUMBERS // length)
    for first in range(0, matrices, matrices_at_once):
        for start in range(0, length, tokens_at_once):
            yield slice(first, first + matrices_at_once), slice(start, start + tokens_at_once)


def split_heads(rows_RLW: Tensor, heads: int) -> Tensor:
    """Return [R, L, W] as M = R * heads matrices [M, L, D]."""
    return rows_RLW.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)


def decoded(vectors: TeacherVectors, index_RL: Tensor) -> Tensor:
    return vectors.decode(index_RL.flatten()).unflatten(0, index_RL.shape)
