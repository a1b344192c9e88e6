"""Forward, reverse and Jensen-Shannon divergence against sums written out longhand, and at their limits.

Shapes: N positions, V vocabulary, C classes, K kept ids.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from student_train.losses import formulas
from student_train.losses.divergence import LEAST_LOG_PROB, Divergence

INFINITY = float("inf")
KINDS = [Divergence(), Divergence("reverse"), Divergence("js"), Divergence("js", 0.1), Divergence("js", 0.9)]
each_kind = pytest.mark.parametrize("divergence", KINDS, ids=lambda kind: f"{kind.kind} {kind.beta}")


def draw_logits(seed: int, *shape: int) -> Tensor:
    return 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl_longhand(p: list[float], q: list[float]) -> float:
    return sum(p_i * (math.log(p_i) - math.log(q_i)) for p_i, q_i in zip(p, q, strict=True) if p_i > 0)


def longhand(divergence: Divergence, p: list[float], q: list[float]) -> float:
    if divergence.kind == "forward":
        return kl_longhand(p, q)
    if divergence.kind == "reverse":
        return kl_longhand(q, [max(p_i, math.exp(LEAST_LOG_PROB)) for p_i in p])
    beta = divergence.beta
    m = [beta * p_i + (1 - beta) * q_i for p_i, q_i in zip(p, q, strict=True)]
    return beta * kl_longhand(p, m) + (1 - beta) * kl_longhand(q, m)


@each_kind
def test_values_are_the_sums_over_classes(divergence: Divergence) -> None:
    student_NC, teacher_NC = draw_logits(0, 5, 6), draw_logits(1, 5, 6)
    teacher_NC[0, 2] = student_NC[0, 2] = -INFINITY  # on neither side: not compared
    teacher_NC[1, 3:] = -INFINITY  # the student's alone
    expected = [
        longhand(divergence, p, q)
        for p, q in zip(teacher_NC.softmax(1).tolist(), student_NC.softmax(1).tolist(), strict=True)
    ]
    assert divergence(student_NC, teacher_NC).tolist() == pytest.approx(expected, rel=1e-9)


@each_kind
def test_gradients_agree_with_finite_differences(divergence: Divergence) -> None:
    student_NC, teacher_NC = draw_logits(2, 3, 5).requires_grad_(), draw_logits(3, 3, 5)
    teacher_NC[1, 3:] = -INFINITY
    assert torch.autograd.gradcheck(lambda logits: divergence(logits, teacher_NC), student_NC)


@each_kind
def test_the_teacher_itself_is_at_no_distance_and_everyone_else_is_at_some(divergence: Divergence) -> None:
    student_NC, teacher_NC = draw_logits(4, 6, 5), draw_logits(5, 6, 5)
    assert (divergence(teacher_NC + 7.0, teacher_NC).abs() < 1e-12).all()
    assert (divergence(student_NC, teacher_NC) > 1e-4).all()


@each_kind
def test_a_row_of_which_the_teacher_says_nothing_is_a_zero_and_leaves_the_others_alone(divergence: Divergence) -> None:
    student_NC, teacher_NC = draw_logits(6, 3, 5).requires_grad_(), draw_logits(7, 3, 5)
    teacher_NC[1] = -INFINITY
    values_N = divergence(student_NC, teacher_NC)
    (gradient_NC,) = torch.autograd.grad(values_N.sum(), student_NC)
    assert values_N[1] == 0
    assert (gradient_NC[1] == 0).all()
    assert (values_N[[0, 2]] > 0).all()
    assert (gradient_NC[[0, 2]].abs().sum(1) > 0).all()


def test_jensen_shannon_over_beta_becomes_forward_and_over_its_complement_reverse() -> None:
    student_NC, teacher_NC = draw_logits(8, 4, 6), draw_logits(9, 4, 6)
    tiny = 1e-6
    near_forward_N = Divergence("js", tiny)(student_NC, teacher_NC) / tiny
    near_reverse_N = Divergence("js", 1 - tiny)(student_NC, teacher_NC) / tiny
    torch.testing.assert_close(near_forward_N, Divergence()(student_NC, teacher_NC), rtol=1e-3, atol=0)
    torch.testing.assert_close(near_reverse_N, Divergence("reverse")(student_NC, teacher_NC), rtol=1e-3, atol=0)


def test_jensen_shannon_is_bounded_and_symmetric_at_one_half() -> None:
    one_NC, other_NC = 50 * draw_logits(10, 20, 6), 50 * draw_logits(11, 20, 6)
    there_N, back_N = Divergence("js")(one_NC, other_NC), Divergence("js")(other_NC, one_NC)
    torch.testing.assert_close(there_N, back_N)
    assert there_N.max() <= math.log(2) + 1e-12


# ---------------------------------------------------------------- against a dump's ids


def kept_of(teacher_NV: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    log_probs_NV = teacher_NV.log_softmax(-1)
    log_probs_NK, ids_NK = log_probs_NV.topk(k)
    return ids_NK, log_probs_NK, log_probs_NV.scatter(1, ids_NK, -INFINITY).logsumexp(-1)


@each_kind
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("tail", ["class", "renormalise", "log sums"])
def test_top_k_lumps_both_sides_before_they_are_compared(divergence: Divergence, temperature: float, tail: str) -> None:
    student_NV, teacher_NV = draw_logits(12, 4, 8).requires_grad_(), draw_logits(13, 4, 8)
    ids_NK, log_probs_NK, tail_N = kept_of(teacher_NV, 3)
    options: dict[str, Any] = {"temperature": temperature, "divergence": divergence}
    if tail == "log sums":
        options["log_sum_N"] = (teacher_NV.log_softmax(-1) / temperature).logsumexp(-1)
    else:
        options["tail"] = tail

    def value(logits_NV: Tensor) -> Tensor:
        return formulas.kl_sparse(logits_NV, ids_NK, log_probs_NK, tail_N, **options)

    rows = []
    for student_V, teacher_V, ids_K in zip(student_NV.detach(), teacher_NV, ids_NK.tolist(), strict=True):
        sides = []
        for logits_V in (teacher_V, student_V):
            early = temperature if tail == "log sums" else 1.0
            probs_V = (logits_V / early).softmax(0)
            lumped = [float(probs_V[i]) for i in ids_K]
            lumped += [] if tail == "renormalise" else [1 - sum(lumped)]
            powers = [p ** (early / temperature) for p in lumped]
            sides.append([power / sum(powers) for power in powers])
        rows.append(longhand(divergence, *sides))
    assert value(student_NV).item() == pytest.approx(temperature**2 * sum(rows) / len(rows), rel=1e-7)
    assert torch.autograd.gradcheck(value, student_NV)


@each_kind
def test_dense_divergences_are_tempered_and_scaled(divergence: Divergence) -> None:
    student_NV, teacher_NV = draw_logits(14, 4, 6), draw_logits(15, 4, 6)
    expected = 9.0 * divergence(student_NV / 3.0, teacher_NV / 3.0).mean()
    torch.testing.assert_close(formulas.kl_dense(student_NV, teacher_NV, 3.0, divergence), expected)


@each_kind
def test_the_tails_mass_goes_to_the_label_whether_or_not_it_is_kept(divergence: Divergence) -> None:
    """Row 0: kept already; 1: not kept; 2: no label, so that the tail stays a class of its own."""
    student_NV, teacher_NV = draw_logits(16, 3, 7).requires_grad_(), draw_logits(17, 3, 7)
    ids_NK, log_probs_NK, tail_N = kept_of(teacher_NV, 3)
    outside = next(i for i in range(7) if i not in ids_NK[1].tolist())
    labels_N = torch.tensor([int(ids_NK[0, 2]), outside, -100])
    p_NV = torch.zeros(3, 7, dtype=torch.float64).scatter(1, ids_NK, log_probs_NK.exp())
    for row in (0, 1):
        p_NV[row, labels_N[row]] += tail_N[row].exp()
    expected_N = divergence(student_NV[:2], p_NV[:2].log()).tolist()
    expected_N.append(
        formulas.kl_sparse(student_NV[2:], ids_NK[2:], log_probs_NK[2:], tail_N[2:], divergence=divergence).item()
    )

    def value(logits_NV: Tensor) -> Tensor:
        kept = formulas.tail_to_labels(ids_NK, log_probs_NK, tail_N, labels_N)
        return formulas.kl_sparse(logits_NV, *kept, divergence=divergence)

    if divergence.kind != "reverse":  # which lumps what the teacher rules out into one class
        assert value(student_NV).item() == pytest.approx(sum(expected_N) / 3, rel=1e-9)
    assert torch.autograd.gradcheck(value, student_NV)
