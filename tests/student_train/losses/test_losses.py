"""The losses against references written out longhand in float64, and at their edges.

Shape suffixes: N positions, V vocabulary, K kept candidates, D width.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.dump.codecs import Draws, Sparse, Threshold, position_keys
from student_train.losses import formulas

INFINITY = float("inf")

seeds = st.integers(0, 2**32 - 1)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 7.0])


def draw_logits(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def keep_top_k(teacher_logits_NV: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a dump keeps of a teacher: ids, exact log-probabilities, log of the mass outside."""
    log_probs_NV = teacher_logits_NV.log_softmax(-1)
    log_probs_NK, ids_NK = log_probs_NV.topk(k)
    outside_NV = log_probs_NV.scatter(1, ids_NK, -INFINITY)
    return ids_NK, log_probs_NK, outside_NV.logsumexp(-1)


def kl_longhand(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(p_i * (np.log(p_i) - np.log(q_i)) for p_i, q_i in zip(p, q, strict=True) if p_i > 0))


def temper_longhand(probs: np.ndarray, temperature: float) -> np.ndarray:
    powers = probs ** (1 / temperature)
    return powers / powers.sum()


def softmax_longhand(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def kl_sparse_longhand(
    student_NV: Tensor, ids_NK: Tensor, log_probs_NK: Tensor, tail_N: Tensor, temperature: float, tail: str
) -> float:
    """Class by class and row by row: first the probabilities, then lumping, then the temperature."""
    rows = []
    for student_V, ids_K, log_probs_K, tail_log_prob in zip(
        student_NV.numpy(), ids_NK.numpy(), log_probs_NK.numpy(), tail_N.numpy(), strict=True
    ):
        student_probs_V = softmax_longhand(student_V)
        p, q = np.exp(log_probs_K), student_probs_V[ids_K]
        if tail == "class":
            outside = [i for i in range(len(student_V)) if i not in ids_K.tolist()]
            p, q = np.append(p, np.exp(tail_log_prob)), np.append(q, student_probs_V[outside].sum())
        rows.append(kl_longhand(temper_longhand(p, temperature), temper_longhand(q, temperature)))
    return temperature**2 * float(np.mean(rows))


@given(seeds, temperatures)
@settings(max_examples=25)
def test_dense_kl_is_the_mean_over_positions_of_sum_p_log_p_over_q_times_temperature_squared(
    seed: int, temperature: float
) -> None:
    student_NV, teacher_NV = draw_logits(seed, 4, 6), draw_logits(seed + 1, 4, 6)
    expected = temperature**2 * np.mean(
        [
            kl_longhand(softmax_longhand(teacher_V / temperature), softmax_longhand(student_V / temperature))
            for student_V, teacher_V in zip(student_NV.numpy(), teacher_NV.numpy(), strict=True)
        ]
    )
    assert formulas.kl_dense(student_NV, teacher_NV, temperature).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradient_of_dense_kl_is_the_difference_of_the_probabilities(temperature: float) -> None:
    """Hinton et al. 2015, equation 2, times the T**2 of the loss."""
    student_NV, teacher_NV = draw_logits(0, 5, 7).requires_grad_(), draw_logits(1, 5, 7)
    formulas.kl_dense(student_NV, teacher_NV, temperature).backward()
    expected_NV = temperature * ((student_NV / temperature).softmax(-1) - (teacher_NV / temperature).softmax(-1)) / 5
    torch.testing.assert_close(student_NV.grad, expected_NV.detach())


@given(seeds, st.integers(1, 7), temperatures, st.sampled_from(["class", "renormalise"]))
@settings(max_examples=60)
def test_top_k_kl_agrees_with_the_lumped_distributions(
    seed: int, k: int, temperature: float, tail: formulas.Tail
) -> None:
    student_NV, kept = draw_logits(seed, 4, 7), keep_top_k(draw_logits(seed + 1, 4, 7), k)
    loss = formulas.kl_sparse(student_NV, *kept, temperature=temperature, tail=tail)
    expected = kl_sparse_longhand(student_NV, *kept, temperature, tail)
    assert loss.item() == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("tail", ["class", "renormalise"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_gradient_of_top_k_kl_agrees_with_finite_differences(tail: formulas.Tail, temperature: float, k: int) -> None:
    student_NV, kept = draw_logits(2, 3, 6).requires_grad_(), keep_top_k(draw_logits(3, 3, 6), k)
    assert torch.autograd.gradcheck(
        lambda logits: formulas.kl_sparse(logits, *kept, temperature=temperature, tail=tail), student_NV
    )


@given(seeds, st.integers(1, 7), temperatures, st.sampled_from(["class", "renormalise"]))
@settings(max_examples=60)
def test_top_k_kl_is_never_negative_and_zero_for_the_teacher_itself(
    seed: int, k: int, temperature: float, tail: formulas.Tail
) -> None:
    student_NV, teacher_NV = draw_logits(seed, 3, 7), draw_logits(seed + 1, 3, 7)
    kept = keep_top_k(teacher_NV, k)
    assert formulas.kl_sparse(student_NV, *kept, temperature=temperature, tail=tail) >= -1e-12
    shifted_NV = teacher_NV + 17.0
    assert formulas.kl_sparse(shifted_NV, *kept, temperature=temperature, tail=tail).abs() < 1e-12


@given(seeds, temperatures)
@settings(max_examples=25)
def test_kl_is_positive_where_a_class_that_is_compared_differs(seed: int, temperature: float) -> None:
    teacher_NV = draw_logits(seed, 3, 7, scale=1.0)
    kept = keep_top_k(teacher_NV, 3)
    student_NV = teacher_NV.scatter_add(1, kept[0][:, :1], torch.full((3, 1), 0.5, dtype=torch.float64))
    assert formulas.kl_dense(student_NV, teacher_NV, temperature) > 1e-5
    for tail in ("class", "renormalise"):
        assert formulas.kl_sparse(student_NV, *kept, temperature=temperature, tail=tail) > 1e-5


def test_only_the_tail_class_has_a_cost_for_mass_outside_of_the_kept_ids() -> None:
    teacher_NV = draw_logits(4, 3, 7)
    kept = keep_top_k(teacher_NV, 3)
    outside_NV = torch.ones_like(teacher_NV).scatter(1, kept[0], 0.0)
    student_NV = teacher_NV + 2.0 * outside_NV
    assert formulas.kl_sparse(student_NV, *kept, tail="class") > 0.05
    assert formulas.kl_sparse(student_NV, *kept, tail="renormalise").abs() < 1e-12


def test_one_id_outside_makes_the_tail_class_the_dense_kl() -> None:
    """With V - 1 ids kept, the tail is the last id: nothing is lumped."""
    student_NV, teacher_NV = draw_logits(5, 4, 6), draw_logits(6, 4, 6)
    loss = formulas.kl_sparse(student_NV, *keep_top_k(teacher_NV, 5), temperature=2.0)
    torch.testing.assert_close(loss, formulas.kl_dense(student_NV, teacher_NV, 2.0))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("tail", ["class", "renormalise"])
@pytest.mark.parametrize("rounding", [-INFINITY, -16.0])
def test_the_whole_vocabulary_kept_is_the_dense_kl_whatever_rounding_left_in_the_tail(
    tail: formulas.Tail, rounding: float
) -> None:
    student_NV, teacher_NV = draw_logits(7, 4, 6).requires_grad_(), draw_logits(8, 4, 6)
    ids_NK, log_probs_NK, _ = keep_top_k(teacher_NV, 6)
    with torch.autograd.detect_anomaly(check_nan=True):
        loss = formulas.kl_sparse(
            student_NV, ids_NK, log_probs_NK, torch.full((4,), rounding), temperature=2.0, tail=tail
        )
        (gradient_NV,) = torch.autograd.grad(loss, student_NV)
    expected = formulas.kl_dense(student_NV, teacher_NV, 2.0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient_NV, torch.autograd.grad(expected, student_NV)[0])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_tail_of_minus_infinity_adds_nothing_but_still_counts_in_the_students_total(temperature: float) -> None:
    """The teacher has all of its mass on three of five ids."""
    student_NV = draw_logits(9, 2, 5).requires_grad_()
    ids_NK = torch.tensor([[0, 1, 2], [4, 2, 0]])
    log_probs_NK = draw_logits(10, 2, 3).log_softmax(-1)
    tail_N = torch.full((2,), -INFINITY)
    loss = formulas.kl_sparse(student_NV, ids_NK, log_probs_NK, tail_N, temperature=temperature)
    expected = kl_sparse_longhand(student_NV.detach(), ids_NK, log_probs_NK, tail_N, temperature, "class")
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    (gradient_NV,) = torch.autograd.grad(loss, student_NV)
    assert gradient_NV.isfinite().all()
    assert (gradient_NV[0, 3:] > 0).all(), "mass where the teacher has none must be pushed down"


@given(seeds, st.integers(0, 7), temperatures, st.sampled_from(["class", "renormalise"]))
@settings(max_examples=40)
def test_filling_short_rows_up_changes_neither_value_nor_gradient(
    seed: int, k: int, temperature: float, tail: formulas.Tail
) -> None:
    """Also with a padding id that is kept elsewhere in the row, and in rows with nothing kept at all."""
    student_NV, teacher_NV = draw_logits(seed, 3, 7).requires_grad_(), draw_logits(seed + 1, 3, 7)
    ids_NK, log_probs_NK, tail_N = keep_top_k(teacher_NV, max(k, 1))
    if k == 0:
        log_probs_NK = torch.full_like(log_probs_NK, -INFINITY)
        expected, gradient_NV = torch.zeros((), dtype=torch.float64), torch.zeros(3, 7, dtype=torch.float64)
        tail_N = torch.zeros(3)
    else:
        expected = formulas.kl_sparse(student_NV, ids_NK, log_probs_NK, tail_N, temperature=temperature, tail=tail)
        (gradient_NV,) = torch.autograd.grad(expected, student_NV)
    generator = torch.Generator().manual_seed(seed)
    filled_ids_NK = torch.cat([torch.randint(7, (3, 2), generator=generator), ids_NK], dim=1)
    filled_log_probs_NK = torch.cat([torch.full((3, 2), -INFINITY), log_probs_NK], dim=1)
    loss = formulas.kl_sparse(
        student_NV, filled_ids_NK, filled_log_probs_NK, tail_N, temperature=temperature, tail=tail
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student_NV)[0], gradient_NV)


@pytest.mark.parametrize("tail", ["class", "renormalise"])
def test_a_row_that_says_nothing_counts_as_a_zero(tail: formulas.Tail) -> None:
    student_NV = draw_logits(11, 2, 7).requires_grad_()
    ids_NK, log_probs_NK, tail_N = keep_top_k(draw_logits(12, 2, 7), 3)
    alone = formulas.kl_sparse(student_NV[:1], ids_NK[:1], log_probs_NK[:1], tail_N[:1], tail=tail)
    log_probs_NK[1], tail_N[1] = -INFINITY, -INFINITY
    loss = formulas.kl_sparse(student_NV, ids_NK, log_probs_NK, tail_N, tail=tail)
    torch.testing.assert_close(loss, alone / 2)
    (gradient_NV,) = torch.autograd.grad(loss, student_NV)
    assert (gradient_NV[1] == 0).all()


# --- sampled targets --------------------------------------------------------------------------------------------------


def sampled_weights(seed: int, positions: int, k: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """(ids, log weights) of k ids a position; the weights sum to anything but 1."""
    generator = torch.Generator().manual_seed(seed)
    ids_NK = torch.stack([torch.randperm(vocabulary, generator=generator)[:k] for _ in range(positions)])
    return ids_NK, draw_logits(seed, positions, k, scale=1.0) - 1.5


def spread(ids_NK: Tensor, log_weights_NK: Tensor, vocabulary: int) -> Tensor:
    """Weights [N, V], 0 where an id is not kept."""
    weights_NV = torch.zeros(len(ids_NK), vocabulary, dtype=torch.float64)
    return weights_NV.scatter_add(1, ids_NK, log_weights_NK.double().exp())


@given(seeds, st.integers(1, 7))
@settings(max_examples=40)
def test_sampled_kl_is_the_mean_over_positions_of_sum_w_log_w_over_q(seed: int, k: int) -> None:
    student_NV, (ids_NK, log_weights_NK) = draw_logits(seed, 4, 7), sampled_weights(seed, 4, k, 7)
    expected = np.mean(
        [
            kl_longhand(np.exp(log_weights_K), softmax_longhand(student_V)[ids_K])
            for student_V, ids_K, log_weights_K in zip(
                student_NV.numpy(), ids_NK.numpy(), log_weights_NK.numpy(), strict=True
            )
        ]
    )
    assert formulas.kl_sampled(student_NV, ids_NK, log_weights_NK).item() == pytest.approx(expected, rel=1e-9)


@given(seeds, st.integers(1, 7))
@settings(max_examples=20)
def test_gradient_of_sampled_kl_is_the_softmax_times_the_weights_sum_minus_the_weights(seed: int, k: int) -> None:
    student_NV, (ids_NK, log_weights_NK) = draw_logits(seed, 4, 7).requires_grad_(), sampled_weights(seed, 4, k, 7)
    loss = formulas.kl_sampled(student_NV, ids_NK, log_weights_NK)
    weights_NV = spread(ids_NK, log_weights_NK, 7)
    expected_NV = (student_NV.softmax(-1) * weights_NV.sum(1, keepdim=True) - weights_NV) / 4
    torch.testing.assert_close(torch.autograd.grad(loss, student_NV)[0], expected_NV.detach())
    assert torch.autograd.gradcheck(lambda logits: formulas.kl_sampled(logits, ids_NK, log_weights_NK), student_NV)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@given(seeds, st.integers(0, 5))
@settings(max_examples=20)
def test_filling_sampled_rows_up_changes_neither_value_nor_gradient(seed: int, k: int) -> None:
    """Also with a padding id that is kept elsewhere in the row, in rows with nothing kept, and where the student rules
    the padding's id out."""
    student_NV = draw_logits(seed, 3, 7)
    student_NV[:, 6] = -INFINITY
    student_NV.requires_grad_()
    ids_NK, log_weights_NK = sampled_weights(seed, 3, k, 6)
    fillings_NK = torch.randint(7, (3, 2), generator=torch.Generator().manual_seed(seed))
    fillings_NK[0] = 6
    filled_ids_NK = torch.cat([fillings_NK[:, :1], ids_NK, fillings_NK[:, 1:]], dim=1)
    nothing_N1 = torch.full((3, 1), -INFINITY)
    expected = formulas.kl_sampled(student_NV, ids_NK, log_weights_NK)
    with torch.autograd.detect_anomaly(check_nan=True):
        loss = formulas.kl_sampled(
            student_NV, filled_ids_NK, torch.cat([nothing_N1, log_weights_NK, nothing_N1], dim=1)
        )
        (gradient_NV,) = torch.autograd.grad(loss, student_NV)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient_NV, torch.autograd.grad(expected, student_NV)[0])


def test_sampled_kl_of_the_whole_distribution_is_the_dense_kl_and_zero_for_the_teacher_itself() -> None:
    student_NV, teacher_NV = draw_logits(30, 4, 6), draw_logits(31, 4, 6)
    ids_NK, log_probs_NK, _ = keep_top_k(teacher_NV, 6)
    loss = formulas.kl_sampled(student_NV, ids_NK, log_probs_NK)
    torch.testing.assert_close(loss, formulas.kl_dense(student_NV, teacher_NV))
    assert formulas.kl_sampled(teacher_NV + 17.0, ids_NK, log_probs_NK).abs() < 1e-12


@pytest.mark.parametrize("rule", [Threshold(threshold=0.05), Draws(draws=12)], ids=lambda rule: rule.describe())
def test_the_gradient_against_sampled_ids_is_unbiased_for_that_of_the_exact_kl(rule: Threshold | Draws) -> None:
    """One distribution under many keys, so that the mean over the batch is the mean over what is drawn."""
    many, vocabulary = 8000, 40
    teacher_V = draw_logits(32, vocabulary, scale=1.5).float()
    codec = Sparse(name="d", selection=rule, vocabulary=vocabulary, levels=65_000)
    keys_N = position_keys(0, torch.arange(many), torch.zeros(many, dtype=torch.int64))
    targets = codec.decode(codec.encode(teacher_V.expand(many, -1).contiguous(), keys_N))
    student_NV = draw_logits(33, 1, vocabulary).expand(many, -1).clone().requires_grad_()
    loss = formulas.kl_sampled(student_NV, targets.ids_NK, targets.log_probs_NK)
    gradients_NV = torch.autograd.grad(loss, student_NV)[0] * many
    q, p = student_NV[0].detach().softmax(-1), teacher_V.double().softmax(-1)
    errors_N = gradients_NV.std(0) / many**0.5
    assert ((gradients_NV.mean(0) - (q - p)).abs() <= 4 * errors_N + 1e-4).all()
    assert (errors_N > 1e-4).sum() > vocabulary / 2, "hardly anything is drawn at random here"
    assert ((q - p).abs() > 10 * errors_N).any(), "the noise hides any bias"


# --- a temperature over the whole vocabulary --------------------------------------------------------------------------


def tempered_and_lumped(student_NV: Tensor, teacher_NV: Tensor, ids_NK: Tensor, temperature: float) -> float:
    """KL between the two softmaxes at T over all of V, whatever is outside of the ids lumped into one class."""
    rows = []
    for student_V, teacher_V, ids_K in zip(student_NV.numpy(), teacher_NV.numpy(), ids_NK.numpy(), strict=True):
        p, q = softmax_longhand(teacher_V / temperature), softmax_longhand(student_V / temperature)
        outside = np.setdiff1d(np.arange(len(p)), ids_K)
        rows.append(kl_longhand(*(np.append(probs[ids_K], probs[outside].sum()) for probs in (p, q))))
    return temperature**2 * float(np.mean(rows))


def log_sums(teacher_NV: Tensor, temperature: float) -> Tensor:
    return (teacher_NV.log_softmax(-1) / temperature).logsumexp(-1)


@given(seeds, st.integers(1, 12), st.sampled_from([0.5, 2.0, 4.0]))
@settings(max_examples=60)
def test_with_log_sums_both_sides_are_tempered_over_the_whole_vocabulary_and_then_lumped(
    seed: int, k: int, temperature: float
) -> None:
    student_NV, teacher_NV = draw_logits(seed, 4, 12), draw_logits(seed + 1, 4, 12)
    kept = keep_top_k(teacher_NV, k)
    log_sum_N = log_sums(teacher_NV, temperature)
    loss = formulas.kl_sparse(student_NV, *kept, temperature=temperature, log_sum_N=log_sum_N)
    expected = tempered_and_lumped(student_NV, teacher_NV, kept[0], temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-7, abs=1e-10)
    itself = formulas.kl_sparse(teacher_NV - 5.0, *kept, temperature=temperature, log_sum_N=log_sum_N)
    assert itself.abs() < 1e-9


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
def test_with_log_sums_the_gradient_agrees_with_finite_differences(temperature: float) -> None:
    student_NV, teacher_NV = draw_logits(34, 3, 8).requires_grad_(), draw_logits(35, 3, 8)
    kept, log_sum_N = keep_top_k(teacher_NV, 3), log_sums(teacher_NV, temperature)
    assert torch.autograd.gradcheck(
        lambda logits: formulas.kl_sparse(logits, *kept, temperature=temperature, log_sum_N=log_sum_N), student_NV
    )


@pytest.mark.parametrize("error", [-1e-3, 1e-3])
def test_rounded_log_sums_that_leave_no_tail_or_less_give_a_finite_loss(error: float) -> None:
    """With float16 log sums the mass of the kept ids at a temperature is slightly more or less than 1."""
    student_NV, teacher_NV = draw_logits(36, 3, 8).requires_grad_(), draw_logits(37, 3, 8)
    teacher_NV[:, 5:] -= 100.0
    ids_NK, log_probs_NK, tail_N = keep_top_k(teacher_NV, 5)
    exact = tempered_and_lumped(student_NV.detach(), teacher_NV, ids_NK, 2.0)
    loss = formulas.kl_sparse(
        student_NV, ids_NK, log_probs_NK, tail_N, temperature=2.0, log_sum_N=log_sums(teacher_NV, 2.0) + error
    )
    assert loss.item() == pytest.approx(exact, abs=0.05)
    assert torch.autograd.grad(loss, student_NV)[0].isfinite().all()


def test_log_sums_change_nothing_where_both_sides_are_conditioned_on_the_kept_ids() -> None:
    student_NV, teacher_NV = draw_logits(38, 3, 8), draw_logits(39, 3, 8)
    kept = keep_top_k(teacher_NV, 3)
    plain, given_sums = (
        formulas.kl_sparse(student_NV, *kept, temperature=2.0, tail="renormalise", log_sum_N=log_sum_N)
        for log_sum_N in (None, log_sums(teacher_NV, 2.0))
    )
    assert torch.equal(plain, given_sums)


# --- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_give_finite_losses_and_gradients(dtype: torch.dtype, k: int) -> None:
    generator = torch.Generator().manual_seed(13)
    student_NV = (1e4 * (2.0 * torch.randint(2, (32, 5), generator=generator) - 1)).to(dtype).requires_grad_()
    teacher_NV = 1e4 * (2.0 * torch.randint(2, (32, 5), generator=generator) - 1)
    kept = keep_top_k(teacher_NV, k)
    for loss in (
        formulas.kl_dense(student_NV, teacher_NV, 0.5),
        formulas.kl_sparse(student_NV, *kept, temperature=0.5, tail="class"),
        formulas.kl_sparse(student_NV, *kept, temperature=0.5, tail="renormalise"),
        formulas.kl_sparse(student_NV, *kept, temperature=2.0, log_sum_N=log_sums(teacher_NV, 2.0)),
        formulas.kl_sampled(student_NV, *kept[:2]),
        formulas.cross_entropy(student_NV, torch.arange(32) % 5),
        formulas.logits_mse(student_NV, teacher_NV),
    ):
        assert loss.isfinite()
        assert torch.autograd.grad(loss, student_NV)[0].isfinite().all()


def test_the_tail_keeps_its_digits_when_the_student_is_nearly_sure() -> None:
    """Here 1 - sum(kept) is exactly 0 in float32, whose logarithm would be -inf."""
    student_NV = torch.tensor([[30.0, 0.0, 0.0, 0.0]], requires_grad=True)
    ids_NK, log_probs_NK, tail_N = keep_top_k(torch.tensor([[5.0, 0.0, 0.0, 0.0]], dtype=torch.float64), 1)
    loss = formulas.kl_sparse(student_NV, ids_NK, log_probs_NK.float(), tail_N.float())
    expected = kl_sparse_longhand(student_NV.detach().double(), ids_NK, log_probs_NK, tail_N, 1.0, "class")
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    (gradient_NV,) = torch.autograd.grad(loss, student_NV)
    expected_tail = -tail_N.exp().item() / 3
    assert gradient_NV[0, 1:].tolist() == pytest.approx([expected_tail] * 3, rel=1e-4)


def test_half_precision_is_computed_in_float32() -> None:
    student_NV, teacher_NV = draw_logits(14, 8, 50).bfloat16(), draw_logits(15, 8, 50)
    ids_NK, log_probs_NK, tail_N = keep_top_k(teacher_NV, 5)
    pairs = [
        (formulas.kl_dense(student_NV, teacher_NV.float()), formulas.kl_dense(student_NV.double(), teacher_NV)),
        (
            formulas.kl_sparse(student_NV, ids_NK, log_probs_NK.float(), tail_N.float()),
            formulas.kl_sparse(student_NV.double(), ids_NK, log_probs_NK, tail_N),
        ),
        (
            formulas.kl_sparse(
                student_NV,
                ids_NK,
                log_probs_NK.float(),
                tail_N.float(),
                temperature=3.0,
                log_sum_N=log_sums(teacher_NV, 3.0).float(),
            ),
            formulas.kl_sparse(
                student_NV.double(),
                ids_NK,
                log_probs_NK,
                tail_N,
                temperature=3.0,
                log_sum_N=log_sums(teacher_NV, 3.0),
            ),
        ),
        (
            formulas.kl_sampled(student_NV, ids_NK, log_probs_NK.float()),
            formulas.kl_sampled(student_NV.double(), ids_NK, log_probs_NK),
        ),
        (formulas.logits_mse(student_NV, teacher_NV.float()), formulas.logits_mse(student_NV.double(), teacher_NV)),
        (formulas.hidden_mse(student_NV, teacher_NV.float()), formulas.hidden_mse(student_NV.double(), teacher_NV)),
        (
            formulas.hidden_cosine(student_NV, teacher_NV.float()),
            formulas.hidden_cosine(student_NV.double(), teacher_NV),
        ),
    ]
    labels_N = torch.arange(8)
    pairs.append((formulas.cross_entropy(student_NV, labels_N), formulas.cross_entropy(student_NV.double(), labels_N)))
    for loss, expected in pairs:
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_mean_squared_errors_are_over_positions_and_width() -> None:
    student, teacher = draw_logits(16, 4, 6), draw_logits(17, 4, 6)
    expected = sum((s - t) ** 2 for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    assert formulas.logits_mse(student, teacher).item() == pytest.approx(expected / 24)
    assert formulas.hidden_mse(student, teacher).item() == pytest.approx(expected / 24)


def test_hidden_cosine_is_one_minus_the_cosine_and_ignores_length() -> None:
    student_ND, teacher_ND = draw_logits(18, 4, 6), draw_logits(19, 4, 6)
    cosines = [
        float(s @ t / np.sqrt((s @ s) * (t @ t))) for s, t in zip(student_ND.numpy(), teacher_ND.numpy(), strict=True)
    ]
    assert formulas.hidden_cosine(student_ND, teacher_ND).item() == pytest.approx(1 - np.mean(cosines))
    assert formulas.hidden_cosine(3.0 * teacher_ND, teacher_ND).item() == pytest.approx(0.0, abs=1e-12)
    assert formulas.hidden_cosine(-teacher_ND, teacher_ND).item() == pytest.approx(2.0)


def test_cross_entropy_is_averaged_over_the_labelled_positions_alone() -> None:
    logits_NV = draw_logits(20, 4, 3).requires_grad_()
    labels_N = torch.tensor([2, -100, 0, -100], dtype=torch.int32)
    probs_NV = [softmax_longhand(row) for row in logits_NV.detach().numpy()]
    loss = formulas.cross_entropy(logits_NV, labels_N)
    assert loss.item() == pytest.approx(-(np.log(probs_NV[0][2]) + np.log(probs_NV[2][0])) / 2)
    (gradient_NV,) = torch.autograd.grad(loss, logits_NV)
    assert (gradient_NV[1::2] == 0).all()


def test_no_labels_give_a_zero_that_is_still_part_of_the_graph() -> None:
    logits_NV = draw_logits(21, 4, 3).requires_grad_()
    loss = formulas.cross_entropy(logits_NV, torch.full((4,), -100))
    assert loss.item() == 0.0
    assert (torch.autograd.grad(loss, logits_NV)[0] == 0).all()


def test_no_positions_give_a_zero_that_is_still_part_of_the_graph() -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    nothing_NK, nothing_N, teacher = torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, 5)
    for loss in (
        formulas.kl_dense(student, teacher),
        formulas.kl_sparse(student, nothing_NK.long(), nothing_NK, nothing_N, tail="class"),
        formulas.kl_sparse(student, nothing_NK.long(), nothing_NK, nothing_N, tail="renormalise"),
        formulas.kl_sparse(student, nothing_NK.long(), nothing_NK, nothing_N, temperature=2.0, log_sum_N=nothing_N),
        formulas.kl_sampled(student, nothing_NK.long(), nothing_NK),
        formulas.logits_mse(student, teacher),
        formulas.cross_entropy(student, nothing_N.long()),
        formulas.hidden_mse(student, teacher),
        formulas.hidden_cosine(student, teacher),
    ):
        assert loss.shape == ()
        assert loss.item() == 0.0
        assert torch.autograd.grad(loss, student)[0].shape == (0, 5)


def test_kl_is_soft_cross_entropy_less_the_teachers_entropy_with_the_same_gradient() -> None:
    torch.manual_seed(3)
    student, teacher = torch.randn(7, 5, dtype=torch.float64, requires_grad=True), torch.randn(7, 5).double()
    probabilities = teacher.softmax(-1)
    soft = -(probabilities * student.log_softmax(-1)).sum(-1).mean()
    entropy = -(probabilities * teacher.log_softmax(-1)).sum(-1).mean()
    found = formulas.kl_dense(student, teacher)
    assert found.item() == pytest.approx((soft - entropy).item(), rel=1e-12)
    (one,), (other,) = torch.autograd.grad(found, student), torch.autograd.grad(soft, student)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_logits_mse_is_the_mean_over_positions_and_classes_in_float64() -> None:
    torch.manual_seed(4)
    student, teacher = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.randn(6, 4).double()
    value = formulas.logits_mse(student, teacher)
    differences = [student[n, c].item() - teacher[n, c].item() for n in range(6) for c in range(4)]
    assert value.item() == pytest.approx(sum(each**2 for each in differences) / 24, rel=1e-12)
    (gradient,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(gradient, torch.tensor(differences).double().reshape(6, 4) / 12, rtol=1e-6, atol=1e-9)
