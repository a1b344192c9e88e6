"""Matrices that are trained in another form: their values and gradients, and the plain model that is left of them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel

from shared.errors import RecipeError
from student_train.students import fold
from student_train.students.initialisers.from_teacher import matrices_of
from student_train.students.initialisers.squeeze import Squeezed
from student_train.students.unfreezing import groups_of, unfrozen
from tests.student_train.students.initialisers.teachers import (
    ARCHITECTURES,
    INPUT_IDS,
    NEURONS,
    output_of,
    student_of,
    teacher_of,
)

FACTORISE = {"kind": "factorise", "rank": 5}
SQUEEZE = {"kind": "squeeze", "by": "importance"}
HALF = {"layers": 2, "hidden_size": 12, "heads": 2, "intermediate_size": 20}
KEYS: dict[str, dict[str, Any]] = {"factorise": {"layers": 2, "intermediate_size": NEURONS}, "squeeze": HALF}


def reparametrised(start: dict[str, Any], model_type: str = "bert") -> PreTrainedModel:
    return student_of(teacher_of(model_type), start, **KEYS[start["kind"]])


def parts(module: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    own = module.parametrizations.weight
    return own.original0, own.original1


def trained(model: PreTrainedModel, steps: int = 3) -> PreTrainedModel:
    """The model after some steps of gradient descent."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(steps):
        model(input_ids=INPUT_IDS, labels=INPUT_IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


# ---------------------------------------------------------------- factors


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_factors_begin_as_the_best_product_of_their_rank(model_type: str) -> None:
    teacher = teacher_of(model_type)
    student = student_of(teacher, {"kind": "factorise", "rank": 5}, intermediate_size=NEURONS)
    for path in matrices_of(teacher):
        weight_pq = teacher.get_submodule(path).weight.double()
        left, values, right = torch.linalg.svd(weight_pq, full_matrices=False)
        best_pq = left[:, :5] @ values[:5].diag() @ right[:5]
        module = student.get_submodule(path)
        left_pr, right_rq = parts(module)
        assert left_pr.shape == (weight_pq.shape[0], 5)
        assert right_rq.shape == (5, weight_pq.shape[1])
        torch.testing.assert_close(module.weight.double(), best_pq, rtol=1e-4, atol=1e-4)
        # Neither factor is much larger than the other, so that one learning rate suits both.
        torch.testing.assert_close(left_pr.norm(), right_rq.norm())


def test_factors_of_the_full_rank_compute_what_the_teacher_does() -> None:
    teacher = teacher_of("bert")
    student = student_of(teacher, {"kind": "factorise", "rank": 24}, intermediate_size=NEURONS)
    torch.testing.assert_close(output_of(student), output_of(teacher), rtol=1e-3, atol=1e-3)


def test_factors_get_the_gradients_of_the_product() -> None:
    student = reparametrised(FACTORISE)
    module = student.bert.encoder.layer[1].output.dense
    left_pr, right_rq = parts(module)
    inputs_Tq, upstream_Tp = torch.randn(7, NEURONS), torch.randn(7, 24)
    module(inputs_Tq).backward(upstream_Tp)
    gradient_pq = upstream_Tp.double().T @ inputs_Tq.double()
    _check(left_pr.grad, gradient_pq @ right_rq.double().T)
    _check(right_rq.grad, left_pr.double().T @ gradient_pq)


def test_the_factors_have_fewer_parameters_than_their_product() -> None:
    student = reparametrised({"kind": "factorise", "rank": 3})
    while_trained = student.num_parameters()
    fold(student)
    shapes = [student.get_submodule(path).weight.shape for path in matrices_of(student)]
    saved = sum(p * q - 3 * (p + q) for p, q in shapes)
    assert student.num_parameters() - while_trained == saved > 0


def test_a_rank_above_that_of_a_matrix_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"student\.start\.rank = 25: bert\.encoder\.layer\.0.* a rank up to 24"):
        reparametrised({"kind": "factorise", "rank": 25})


# ---------------------------------------------------------------- around the teacher's matrices


@pytest.mark.parametrize("start", [SQUEEZE, {"kind": "squeeze", "by": "random"}], ids=str)
@pytest.mark.parametrize("heads", [2, 4], ids=["whole heads", "parts of heads"])
def test_a_squeezed_student_begins_as_the_extracted_one(start: dict[str, Any], heads: int) -> None:
    teacher = teacher_of("bert")
    squeezed = student_of(teacher, start, **{**HALF, "heads": heads})
    extracted = student_of(teacher, {**start, "kind": "extract"}, **{**HALF, "heads": heads})
    assert torch.equal(output_of(squeezed), output_of(extracted))
    assert not torch.equal(output_of(trained(squeezed)), output_of(extracted))


def test_the_maps_around_a_teachers_matrix_get_its_gradients_and_it_stays() -> None:
    teacher = teacher_of("bert")
    student = student_of(teacher, SQUEEZE, **HALF)
    path = "bert.encoder.layer.1.intermediate.dense"
    module, weight_PQ = student.get_submodule(path), teacher.bert.encoder.layer[2].intermediate.dense.weight.detach()
    left_pP, right_Qq = parts(module)
    with torch.no_grad():
        left_pP.normal_()
        right_Qq.normal_()
    inputs_Tq, upstream_Tp = torch.randn(7, 12), torch.randn(7, 20)
    output_Tp = module(inputs_Tq)
    product_pq = left_pP.double() @ weight_PQ.double() @ right_Qq.double()
    _check(output_Tp, inputs_Tq.double() @ product_pq.T + module.bias.double())
    output_Tp.backward(upstream_Tp)
    gradient_pq = upstream_Tp.double().T @ inputs_Tq.double()
    _check(left_pP.grad, gradient_pq @ (weight_PQ.double() @ right_Qq.double()).T)
    _check(right_Qq.grad, (left_pP.double() @ weight_PQ.double()).T @ gradient_pq)
    trained(student)
    assert torch.equal(module.parametrizations.weight[0].weight_PQ, weight_PQ)
    assert not any("weight_PQ" in name for name in [*student.state_dict(), *dict(student.named_parameters())])


def test_every_number_of_a_teachers_matrix_takes_part_from_the_first_step() -> None:
    squeezed = Squeezed(torch.randn(6, 8), torch.eye(6)[:2], torch.eye(8)[:, :3])
    left_pP, right_Qq = (value.requires_grad_() for value in squeezed.right_inverse(torch.empty(2, 3)))
    squeezed(left_pP, right_Qq).sum().backward()
    assert (left_pP.grad != 0).all()
    assert (right_Qq.grad != 0).all()


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("start", [FACTORISE, SQUEEZE], ids=str)
def test_a_folded_student_is_a_plain_model_that_computes_the_same(
    start: dict[str, Any], model_type: str, tmp_path: Any
) -> None:
    student = reparametrised(start, model_type)
    if model_type != "roberta":  # a head for classes
        student = trained(student.train()).eval()
    before = output_of(student)
    fold(student)
    assert torch.equal(output_of(student), before)
    plain = type(student)(student.config)
    assert student.state_dict().keys() == plain.state_dict().keys()
    assert {type(module) for module in student.modules()} == {type(module) for module in plain.modules()}
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(output_of(loaded), before)
    assert getattr(loaded.config, "factorised_rank", None) == start.get("rank")


def test_the_folded_product_gives_its_factors_back() -> None:
    student = trained(reparametrised(FACTORISE))
    fold(student)
    for path in matrices_of(student):
        values = torch.linalg.svdvals(student.get_submodule(path).weight.double())
        assert values[4] > 1e3 * values[5]


@pytest.mark.parametrize("start", [FACTORISE, SQUEEZE], ids=str)
def test_the_groups_that_are_unfrozen_hold_what_is_trained(start: dict[str, Any]) -> None:
    student = reparametrised(start)
    groups = groups_of(student)
    grouped = {id(value) for group in groups for value in group}
    assert grouped == {id(value) for value in student.parameters()}
    own = {id(value) for value in parts(student.bert.encoder.layer[1].output.dense)}
    assert own <= {id(value) for value in groups[2]}
    with unfrozen(student, 1, False):
        thawed = {
            name.split(".")[3]
            for name, value in student.named_parameters()
            if value.requires_grad and ".layer." in name
        }
        assert thawed == {"1"}


def _check(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_saved_student_is_read_by_the_auto_class(tmp_path: Any) -> None:
    student = reparametrised(SQUEEZE)
    fold(student)
    student.save_pretrained(tmp_path)
    assert torch.equal(output_of(AutoModelForMaskedLM.from_pretrained(tmp_path).eval()), output_of(student))
