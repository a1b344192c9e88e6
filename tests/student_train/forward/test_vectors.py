"""Hidden-state losses straight from a dump's codes: what decoded vectors would give, value and gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.dump.codecs import Float16Vectors, Int4Vectors, Int8Vectors, LowRankVectors, VectorCodec
from shared.dump.codecs.constants import fingerprint
from student_train.forward import teacher_vectors as vectors
from student_train.forward.teacher_vectors import RowVectors, TeacherVectors, compared_in_slices, one_of_each_row
from student_train.losses import formulas

TOKENS, WIDTH, STUDENT_WIDTH, RANK = 53, 24, 10, 9


def low_rank(coefficients: str) -> VectorCodec:
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5)))[0][
        :RANK
    ].contiguous()
    constants = {"mean": torch.linspace(-1, 1, WIDTH), "basis": basis}
    made = LowRankVectors(
        name="hidden.1",
        width=WIDTH,
        rank=RANK,
        coefficients=coefficients,
        constants_sha256=fingerprint(constants),
    )
    return made.with_constants(constants)


CODECS: dict[str, VectorCodec] = {
    "float16": Float16Vectors(name="hidden.1", width=WIDTH),
    "int8": Int8Vectors(name="hidden.1", width=WIDTH),
    "int8-outliers": Int8Vectors(name="hidden.1", width=WIDTH, outlier_channels=(3, 20)),
    "int4": Int4Vectors(name="hidden.1", width=WIDTH, group=8, outlier_channels=(0,)),
    "low-rank-int8": low_rank("int8"),
    "low-rank-float16": low_rank("float16"),
}
METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": formulas.hidden_mse,
    "cosine": formulas.hidden_cosine,
    "kl": formulas.hidden_kl,
}


def encoded(codec: VectorCodec, tokens: int = TOKENS) -> TeacherVectors:
    torch.manual_seed(1)
    vectors = torch.randn(tokens, WIDTH)
    vectors[:, 3] += 30
    return TeacherVectors(codec, codec.encode(vectors))


def value_and_gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss * 3, leaves)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", CODECS)
def test_the_loss_from_codes_is_that_of_decoded_vectors(
    name: str, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "SLICE_NUMBERS", 7 * WIDTH)
    teacher, compare = encoded(CODECS[name]), METRICS[metric]
    decoded = teacher.codec.decode(teacher.columns)
    assert decoded.shape == (TOKENS, WIDTH)
    student, projection = torch.randn(TOKENS, STUDENT_WIDTH, requires_grad=True), nn.Linear(STUDENT_WIDTH, WIDTH)
    leaves = [student, *projection.parameters()]
    from_codes = value_and_gradients(compared_in_slices(student, projection, teacher, compare), *leaves)
    expected = value_and_gradients(compare(projection(student), decoded), *leaves)
    for found, wanted in zip(from_codes, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("metric", METRICS)
def test_value_and_gradient_in_float64_without_a_projection(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "SLICE_NUMBERS", 5 * WIDTH)
    teacher = encoded(CODECS["int8"])
    target = teacher.codec.decode(teacher.columns).double()
    student = torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    if metric == "mse":
        expected = sum(((student[t] - target[t]) ** 2).sum() for t in range(TOKENS)) / (TOKENS * WIDTH)
    elif metric == "kl":
        log_p, log_q = target.log_softmax(1), student.log_softmax(1)
        expected = sum(log_p[t].exp() @ (log_p[t] - log_q[t]) for t in range(TOKENS)) / TOKENS
    else:
        norms = [student[t].norm() * target[t].norm() for t in range(TOKENS)]
        expected = sum(1 - student[t] @ target[t] / norms[t] for t in range(TOKENS)) / TOKENS
    found = value_and_gradients(compared_in_slices(student, None, teacher, METRICS[metric]), student)
    # A cosine's teacher is normed in float32.
    for one, other in zip(found, value_and_gradients(expected, student), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


def test_no_more_than_a_slice_is_ever_decoded_and_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "SLICE_NUMBERS", 8 * WIDTH)
    decoded: list[int] = []
    decode = Int8Vectors.decode

    def counting(self: Int8Vectors, columns: dict[str, Tensor]) -> Tensor:
        decoded.append(len(next(iter(columns.values()))))
        return decode(self, columns)

    monkeypatch.setattr(Int8Vectors, "decode", counting)
    student = torch.randn(TOKENS, WIDTH, requires_grad=True)
    compared_in_slices(student, None, encoded(CODECS["int8"]), formulas.hidden_mse).backward()
    assert (max(decoded), sum(decoded)) == (8, TOKENS)


def test_a_frozen_projection_gets_no_gradient_and_no_gradient_is_formed_where_none_is_wanted() -> None:
    teacher, projection = encoded(CODECS["int8"]), nn.Linear(STUDENT_WIDTH, WIDTH)
    projection.bias.requires_grad_(False)
    student = torch.randn(TOKENS, STUDENT_WIDTH)
    compared_in_slices(student, projection, teacher, formulas.hidden_mse).backward()
    assert projection.bias.grad is None
    assert projection.weight.grad is not None
    with torch.no_grad():
        assert not compared_in_slices(student, projection, teacher, formulas.hidden_mse).requires_grad


def test_half_precision_states_get_gradients_that_do_not_vanish_before_they_are_scaled() -> None:
    """Mixed precision scales the loss so that gradients survive float16: they must not be rounded to it before that."""
    teacher = encoded(CODECS["int8"], tokens=4000)
    student = (teacher.codec.decode(teacher.columns) + 1e-2).half().requires_grad_()
    scale = 2.0**16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (compared_in_slices(student, None, teacher, formulas.hidden_mse) * scale).backward()
    assert student.grad is not None
    assert student.grad.dtype == torch.float16
    exact = 2 * (student.detach().float() - teacher.codec.decode(teacher.columns)) / student.numel() * scale
    torch.testing.assert_close(student.grad.float(), exact, rtol=2e-3, atol=1e-6)


def test_a_projection_is_computed_in_float32_even_under_autocast() -> None:
    student, projection, teacher = (
        torch.randn(TOKENS, STUDENT_WIDTH),
        nn.Linear(STUDENT_WIDTH, WIDTH),
        encoded(CODECS["int4"]),
    )
    plain = compared_in_slices(student, projection, teacher, formulas.hidden_mse)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compared_in_slices(student, projection, teacher, formulas.hidden_mse), plain)


def test_a_batch_without_tokens_trains_nothing_and_breaks_nothing() -> None:
    student = torch.zeros(0, STUDENT_WIDTH, requires_grad=True)
    projection = nn.Linear(STUDENT_WIDTH, WIDTH)
    codec: Any = CODECS["int8"]
    teacher = TeacherVectors(codec, codec.encode(torch.zeros(0, WIDTH)))
    loss = compared_in_slices(student, projection, teacher, formulas.hidden_mse)
    loss.backward()
    assert loss.item() == 0
    assert projection.weight.grad is not None
    assert not projection.weight.grad.any()


# ---------------------------------------------------------------- one vector a row

LENGTHS = (5, 1, 17, 30)  # of 53 tokens


def plain_rows(vectors_TD: Tensor, of_row: str) -> Tensor:
    parts = vectors_TD.split(LENGTHS)
    return torch.stack([part[0] if of_row == "first" else part.sum(0) / len(part) for part in parts])


@pytest.mark.parametrize("slice_numbers", [1, 7 * WIDTH, 2**20])
@pytest.mark.parametrize("of_row", ["first", "mean"])
@pytest.mark.parametrize("metric", METRICS)
def test_one_vector_a_row_is_compared_as_the_formula_has_it(
    metric: str, of_row: Any, slice_numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 on the student's side, through a projection; the teacher's means are computed in float32."""
    monkeypatch.setattr(vectors, "SLICE_NUMBERS", slice_numbers)
    teacher = encoded(CODECS["int8"])
    target = plain_rows(teacher.codec.decode(teacher.columns).double(), of_row)
    student = torch.randn(TOKENS, STUDENT_WIDTH, dtype=torch.float64, requires_grad=True)
    projection = nn.Linear(STUDENT_WIDTH, WIDTH).double()
    leaves = [student, *projection.parameters()]
    rows = one_of_each_row(student, LENGTHS, of_row)
    found = compared_in_slices(rows, projection, RowVectors(teacher, LENGTHS, of_row), METRICS[metric])
    expected = METRICS[metric](plain_rows(projection(student), of_row), target)
    for one, other in zip(value_and_gradients(found, *leaves), value_and_gradients(expected, *leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("of_row", "tokens"), [("first", len(LENGTHS)), ("mean", TOKENS)])
def test_rows_decode_what_they_need_once_and_no_more_than_a_slice_at_a_time(
    of_row: Any, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "SLICE_NUMBERS", 8 * WIDTH)
    decoded: list[int] = []
    decode = Int8Vectors.decode

    def counting(self: Int8Vectors, columns: dict[str, Tensor]) -> Tensor:
        decoded.append(len(next(iter(columns.values()))))
        return decode(self, columns)

    monkeypatch.setattr(Int8Vectors, "decode", counting)
    teacher = RowVectors(encoded(CODECS["int8"]), LENGTHS, of_row)
    student = torch.randn(TOKENS, WIDTH, requires_grad=True)
    compared_in_slices(one_of_each_row(student, LENGTHS, of_row), None, teacher, formulas.hidden_mse).backward()
    assert max(decoded) <= 8
    assert sum(decoded) == tokens


def test_means_of_half_precision_states_are_made_in_float32() -> None:
    states = torch.full((3000, 2), 1.001).bfloat16().requires_grad_()
    mean = one_of_each_row(states, (3000,), "mean")
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, states.detach()[:1].float())
    mean.sum().backward()
    assert states.grad is not None
    assert states.grad.dtype == torch.bfloat16


def test_the_kl_of_vectors_is_blind_to_what_all_channels_share_and_points_from_the_teacher() -> None:
    teacher = torch.tensor([[8.0, 8.0, 0.0, 0.0]])
    assert float(formulas.hidden_kl(teacher + 3, teacher)) == pytest.approx(0, abs=1e-6)
    # A teacher on two channels: a student on one of them misses half (expensive), one on all four wastes half (log 2).
    one, all_four = torch.tensor([[8.0, 0.0, 0.0, 0.0]]), torch.zeros(1, 4)
    assert float(formulas.hidden_kl(all_four, teacher)) == pytest.approx(0.69, abs=0.02)
    assert float(formulas.hidden_kl(one, teacher)) > 3
