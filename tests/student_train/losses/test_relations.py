"""Attention relations: MiniLM's formulas, whatever the slicing, padding and order of rows."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.dump.codecs import Int8Vectors
from shared.dump.signals import RELATIONS
from shared.errors import RecipeError
from student_train.forward.attention import Attended
from student_train.forward.teacher_vectors import TeacherVectors
from student_train.losses import relation_formulas as relations
from student_train.losses.relation_formulas import default_heads, refuse_misfit, relation_loss, relations_loss

LENGTHS = (5, 1, 9, 5, 0, 2, 9)
TEACHER_WIDTH, STUDENT_WIDTH = 48, 24


def teacher_part(seed: int, tokens: int = sum(LENGTHS)) -> TeacherVectors:
    torch.manual_seed(seed)
    codec = Int8Vectors(name="queries.2", width=TEACHER_WIDTH, outlier_channels=(7,))
    return TeacherVectors(codec, codec.encode(torch.randn(tokens, TEACHER_WIDTH) * 2))


def student_part(seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(sum(LENGTHS), STUDENT_WIDTH, dtype=torch.float64, requires_grad=True)


def plainly(
    student: tuple[Tensor, Tensor],
    teacher: tuple[TeacherVectors, TeacherVectors],
    lengths: Sequence[int],
    heads: int,
    is_causal: bool,
    metric: str = "kl",
) -> Tensor:
    """Row by row, head by head, token by token, in float64."""
    a_p, b_p = (vectors.codec.decode(vectors.columns).double() for vectors in teacher)
    a_q, b_q = student
    total, compared = torch.zeros((), dtype=torch.float64), 0
    for first, end in pairwise(accumulate(lengths, initial=0)):
        for head in range(heads):
            for token in range(first, end):
                seen = slice(first, token + 1 if is_causal else end)
                log, scores = [], []
                for a, b in ((a_p, b_p), (a_q, b_q)):
                    size = a.shape[1] // heads
                    mine = slice(head * size, (head + 1) * size)
                    scores.append((b[seen, mine] @ a[token, mine]) / math.sqrt(size))
                    log.append(scores[-1].log_softmax(0))
                if metric == "kl":
                    total = total + (log[0].exp() * (log[0] - log[1])).sum()
                elif metric == "scores-mse":  # later tokens are 0 in both
                    total = total + (scores[0] - scores[1]).square().sum() / (end - first)
                else:
                    total = total + (log[0].exp() - log[1].exp()).square().sum() / (end - first)
                compared += 1
    return total / compared


@pytest.mark.parametrize("metric", ["kl", "mse", "scores-mse"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("slice_numbers", [1, 20, 150, 2**20])
@pytest.mark.parametrize("heads", [1, 2, 12])
def test_value_and_gradient_are_those_of_the_formula_in_float64(
    heads: int, slice_numbers: int, is_causal: bool, metric: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice of 1 number: a token at a time; 20: some tokens of a row; 150: some heads, or some rows."""
    monkeypatch.setattr(relations, "SLICE_NUMBERS", slice_numbers)
    queries, keys, teacher = student_part(0), student_part(1), (teacher_part(2), teacher_part(3))
    value = relation_loss((queries, keys), teacher, LENGTHS, heads, is_causal, metric)
    expected = plainly((queries, keys), teacher, LENGTHS, heads, is_causal, metric)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert value.item() > (0.1 if metric == "kl" else 0.01)
    found = torch.autograd.grad(value * 7, (queries, keys))
    wanted = torch.autograd.grad(expected * 7, (queries, keys))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_a_self_relation_gives_both_of_its_sides_gradients() -> None:
    values, teacher = student_part(0), teacher_part(1)
    value = relation_loss((values, values), (teacher, teacher), LENGTHS, 4)
    expected = plainly((values, values), (teacher, teacher), LENGTHS, 4, False)
    (found,), (wanted,) = torch.autograd.grad(value, values), torch.autograd.grad(expected, values)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


def test_the_gradient_agrees_with_finite_differences() -> None:
    teacher = teacher_part(3, tokens=4), teacher_part(4, tokens=4)
    torch.manual_seed(0)
    sides = [torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    for metric in ("kl", "mse", "scores-mse"):
        assert torch.autograd.gradcheck(lambda *both: relation_loss(both, teacher, (3, 1), 3, False, metric), sides)  # noqa: B023


def test_a_student_of_the_teachers_own_queries_has_no_loss() -> None:
    teacher = teacher_part(0)
    decoded = teacher.codec.decode(teacher.columns).requires_grad_()
    value = relation_loss((decoded, decoded), (teacher, teacher), LENGTHS, 12)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert decoded.grad is not None
    assert float(decoded.grad.abs().max()) < 1e-7


def test_the_order_of_rows_changes_nothing() -> None:
    order = [3, 6, 0, 5, 1, 4, 2]
    starts = [0, *accumulate(LENGTHS)]
    index = torch.cat([torch.arange(starts[row], starts[row + 1]) for row in order])
    student, teacher = student_part(0), teacher_part(1)
    shuffled = TeacherVectors(teacher.codec, {name: column[index] for name, column in teacher.columns.items()})
    one = relation_loss((student, student), (teacher, teacher), LENGTHS, 4)
    other = relation_loss((student[index],) * 2, (shuffled, shuffled), [LENGTHS[row] for row in order], 4)
    assert one.item() == pytest.approx(other.item(), rel=1e-12)
    (grad_one,), (grad_other,) = torch.autograd.grad(one, student), torch.autograd.grad(other, student)
    torch.testing.assert_close(grad_one, grad_other, rtol=1e-10, atol=1e-14)


def test_no_softmax_is_larger_than_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relations, "SLICE_NUMBERS", 40)
    sizes: list[int] = []
    log_softmax = Tensor.log_softmax
    monkeypatch.setattr(Tensor, "log_softmax", lambda self, dim: sizes.append(self.numel()) or log_softmax(self, dim))
    student, teacher = student_part(0), teacher_part(1)
    relation_loss((student, student), (teacher, teacher), LENGTHS, 12)
    assert max(sizes) <= 40
    assert sum(sizes) == 2 * 12 * sum(length**2 for length in LENGTHS)


def test_half_precision_is_computed_in_float32_even_under_autocast() -> None:
    student, teacher = student_part(0).detach().bfloat16().requires_grad_(), teacher_part(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = relation_loss((student, student), (teacher, teacher), LENGTHS, 4)
    exact = plainly((student.double(),) * 2, (teacher, teacher), LENGTHS, 4, False)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    (grad,) = torch.autograd.grad(value, student)
    assert grad.dtype == torch.bfloat16


def test_a_batch_without_tokens_is_a_zero_of_the_graph() -> None:
    empty, teacher = torch.zeros(0, STUDENT_WIDTH, requires_grad=True), teacher_part(0, tokens=0)
    value = relation_loss((empty, empty), (teacher, teacher), (0, 0), 2)
    value.backward()
    assert value.item() == 0


# ---------------------------------------------------------------- pairs and heads


def attended(is_causal: bool = False) -> Attended:
    return Attended({part: student_part(number) for number, part in enumerate(RELATIONS)}, LENGTHS, is_causal, heads=2)


def test_the_loss_is_the_sum_over_the_pairs_and_only_attention_looks_back_alone() -> None:
    student, teacher = attended(is_causal=True), {part: teacher_part(9 + len(part)) for part in RELATIONS}
    expected = sum(
        plainly((student.parts_TD[part],) * 2, (teacher[part],) * 2, LENGTHS, 6, is_causal=False) for part in RELATIONS
    ) + plainly(
        (student.parts_TD["queries"], student.parts_TD["keys"]),
        (teacher["queries"], teacher["keys"]),
        LENGTHS,
        6,
        is_causal=True,
    )
    value = relations_loss(student, teacher, (*RELATIONS, "attention"), 6)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)


def test_by_default_there_are_12_relation_heads_or_the_most_below_that_divide_all_widths() -> None:
    assert default_heads([384, 768]) == 12
    assert default_heads([128, 1024]) == 8
    assert default_heads([7, 14]) == 7
    assert default_heads([13, 14]) == 1
    student, teacher = attended(), {"values": teacher_part(1)}
    by_default, by_12, by_6 = (relations_loss(student, teacher, ("values",), heads).item() for heads in (None, 12, 6))
    assert by_default == by_12 != by_6


def test_relation_heads_that_do_not_divide_both_widths_are_refused_with_those_that_do() -> None:
    teacher, student = dict.fromkeys(RELATIONS, 48), dict.fromkeys(RELATIONS, 18)
    for fitting in (None, 1, 2, 3, 6):
        refuse_misfit(RELATIONS, fitting, teacher, student)
    with pytest.raises(
        RecipeError, match=r"relation_heads = 12: the teacher's keys are 48 wide and the student's 18; .* 1, 2, 3, 6\."
    ):
        refuse_misfit(("keys",), 12, teacher, student)
    # What no pair is made from needs no heads.
    refuse_misfit(("keys",), 6, teacher | {"values": 5}, student)


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_attention_between_queries_and_fewer_keys_is_refused(whose: str) -> None:
    same, grouped = dict.fromkeys(RELATIONS, 48), {"queries": 48, "keys": 12, "values": 12}
    widths = (grouped, same) if whose == "teacher" else (same, grouped)
    with pytest.raises(RecipeError, match=f"the {whose}'s queries are 48 wide and its keys 12"):
        refuse_misfit(("attention",), 4, *widths)
    refuse_misfit(RELATIONS, 4, *widths)
