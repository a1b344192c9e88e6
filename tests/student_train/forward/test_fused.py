"""Losses slice by slice against the same through all logits in float64, and against finite differences.

Shapes: N positions, M of a slice, V vocabulary, D width, K kept ids.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shared.dump.codecs import DenseTargets, LogitStep, SparseTargets, Targets
from student_train.forward import sliced_logits as fused
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.forward.sliced_logits import SlicedLogits
from student_train.losses.logits import GoldLoss, KLLoss, LogitsMSELoss, TeacherLabelLoss
from student_train.losses.total import total_loss

N, V, D = 7, 9, 3
NOTHING = nn.ModuleDict()
STEPS = {
    "plain": LogitStep(),
    "softcap": LogitStep(step="softcap", value=1.5),
    "scale": LogitStep(step="scale", value=0.3),
    "divisor": LogitStep(step="divisor", value=2.0),
}
GOLD = GoldLoss(weight=0.7)
SPARSE: dict[str, tuple[Any, ...]] = {
    "forward": (KLLoss(tail="class"),),
    "forward, T = 2 with log sums": (KLLoss(tail="class", temperature=2.0),),
    "forward, T = 3 without": (KLLoss(tail="class", temperature=3.0),),
    "renormalised": (KLLoss(tail="renormalise", temperature=2.0),),
    "reverse": (KLLoss(tail="class", divergence="reverse"),),
    "js": (KLLoss(tail="class", divergence="js", beta=0.3),),
    "gold tail": (KLLoss(tail="gold"),),
    "sampled": (KLLoss(),),
    "teacher-label": (TeacherLabelLoss(),),
    "gold": (GOLD,),
    "three of them": (KLLoss(tail="class", weight=2.0), GOLD, KLLoss(tail="renormalise")),
}
DENSE: dict[str, tuple[Any, ...]] = {
    "forward": (KLLoss(),),
    "forward, T = 2": (KLLoss(temperature=2.0),),
    "reverse": (KLLoss(divergence="reverse"),),
    "js": (KLLoss(divergence="js"),),
    "logits-mse": (LogitsMSELoss(),),
    "four of them": (LogitsMSELoss(weight=0.1), KLLoss(), TeacherLabelLoss(), GOLD),
}
CASES = [*(("sparse", name) for name in SPARSE), *(("dense", name) for name in DENSE)]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: ", ".join(case))


@pytest.fixture(autouse=True)
def _slices_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    slice_into(monkeypatch, 3)


def slice_into(monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
    monkeypatch.setattr(fused, "FEWEST_POSITIONS", positions)
    monkeypatch.setattr(fused, "SLICE_VALUES", {"cpu": 1})


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def specs_of(case: tuple[str, str]) -> tuple[Any, ...]:
    return (SPARSE if case[0] == "sparse" else DENSE)[case[1]]


def targets_for(case: tuple[str, str]) -> BatchTargets:
    """A teacher of which a dump kept two exact ids, two sampled ones and one of padding, or everything; two of seven
    labels are missing."""
    teacher_NV = 2 * draw(1, N, V)
    labels_N = torch.tensor([2, -100, 0, 8, 5, -100, 1])
    targets: Targets = DenseTargets(teacher_NV)
    if case[0] == "sparse":
        log_probs_NV = teacher_NV.log_softmax(1)
        order_NV = log_probs_NV.argsort(1, descending=True)
        targets = SparseTargets(
            order_NV[:, [0, 1, 4, 6, 0]],
            torch.cat(
                [log_probs_NV.gather(1, order_NV[:, :2]), torch.full((N, 2), -1.7), torch.full((N, 1), -torch.inf)], 1
            ),
            log_probs_NV.gather(1, order_NV[:, 2:]).logsumexp(1),
            torch.tensor([False, False, True, True, False]).expand(N, -1),
            {2.0: (log_probs_NV / 2).logsumexp(1)},
        )
    return BatchTargets(targets, {}, labels_N)


def head_of(step: str = "plain") -> tuple[SlicedLogits, list[Tensor]]:
    """Logits that are not computed yet, and their inputs: states, weight, bias."""
    inputs = [tensor.requires_grad_() for tensor in (2 * draw(2, N, D), draw(3, V, D), draw(4, V))]
    return SlicedLogits(*inputs, STEPS[step], torch.float64), inputs


def in_slices(
    case: tuple[str, str], sliced: SlicedLogits, batch_targets: BatchTargets
) -> tuple[Tensor, dict[str, Tensor]]:
    return total_loss(specs_of(case), Outputs(None, (), sliced), batch_targets, NOTHING)


def through_all_logits(
    case: tuple[str, str], sliced: SlicedLogits, batch_targets: BatchTargets
) -> tuple[Tensor, dict[str, Tensor]]:
    logits_NV = sliced.after(nn.functional.linear(sliced.states_ND, sliced.weight_VD, sliced.bias_V))
    return total_loss(specs_of(case), Outputs(logits_NV, ()), batch_targets, NOTHING)


@each_case
@pytest.mark.parametrize("step", STEPS)
def test_values_and_gradients_are_those_through_all_logits(case: tuple[str, str], step: str) -> None:
    (sliced, inputs), batch_targets = head_of(step), targets_for(case)
    expected, expected_parts = through_all_logits(case, sliced, batch_targets)
    expected_gradients = torch.autograd.grad(expected, inputs)
    found, parts = in_slices(case, sliced, batch_targets)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(parts, expected_parts)
    assert list(parts) == list(expected_parts)
    torch.testing.assert_close(torch.autograd.grad(3.0 * found, inputs), tuple(3.0 * g for g in expected_gradients))


@each_case
def test_gradients_agree_with_finite_differences(case: tuple[str, str]) -> None:
    (sliced, inputs), batch_targets = head_of("softcap"), targets_for(case)
    gradients = torch.autograd.grad(in_slices(case, sliced, batch_targets)[0], inputs)
    for tensor, gradient in zip(inputs, gradients, strict=True):
        for index in range(tensor.numel()):
            sides = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    tensor.view(-1)[index] += step
                    sides.append(float(in_slices(case, sliced, batch_targets)[0]))
                    tensor.view(-1)[index] -= step
            assert gradient.flatten()[index].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5, abs=1e-8)


@each_case
def test_the_size_of_a_slice_changes_nothing(case: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for positions in (1, 2, N, N + 5):
        slice_into(monkeypatch, positions)
        (sliced, inputs), batch_targets = head_of(), targets_for(case)
        total, _ = in_slices(case, sliced, batch_targets)
        found.append([total.detach(), *torch.autograd.grad(total, inputs)])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@each_case
def test_four_micro_batches_are_one_big_batch_by_their_shares_of_what_is_counted(case: tuple[str, str]) -> None:
    (sliced, inputs), batch_targets, specs = head_of(), targets_for(case), specs_of(case)
    whole = [spec.counted(batch_targets.labels_N).clamp(min=1) for spec in specs]
    expected, parts = in_slices(case, sliced, batch_targets)
    gradients = torch.autograd.grad(expected, inputs)
    for is_sliced in (True, False):
        totals, sums = [], dict.fromkeys(parts, 0.0)
        for part in (slice(0, 1), slice(1, 2), slice(2, 6), slice(6, 7)):  # the second without any label
            mine = SlicedLogits(sliced.states_ND[part], *inputs[1:], sliced.after, sliced.dtype)
            logits = None if is_sliced else nn.functional.linear(mine.states_ND, *inputs[1:])
            outputs = Outputs(logits, (), mine if is_sliced else None)
            mine_of = [spec.counted(batch_targets.labels_N[part]) for spec in specs]
            shares = torch.stack([count / of for count, of in zip(mine_of, whole, strict=True)]).double()
            total, here = total_loss(specs, outputs, batch_targets.part(part), NOTHING, shares)
            totals.append(total)
            sums = {name: value + float(here[name]) for name, value in sums.items()}
        assert sums == pytest.approx({name: float(value) for name, value in parts.items()})
        torch.testing.assert_close(sum(totals[1:], totals[0]), expected)
        torch.testing.assert_close(torch.autograd.grad(sum(totals[1:], totals[0]), inputs), gradients)


@each_case
def test_no_positions_give_a_zero_that_is_still_part_of_the_graph(case: tuple[str, str]) -> None:
    sliced, inputs = head_of()
    none = SlicedLogits(sliced.states_ND[:0], *inputs[1:], sliced.after, sliced.dtype)
    total, _ = in_slices(case, none, targets_for(case).part(slice(0, 0)))
    assert total.item() == 0.0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(total, inputs))


def test_logits_of_more_than_a_slice_never_exist() -> None:
    """Neither the student's nor the teacher's, where these are made of stored states."""
    seen: list[int] = []
    head_VD = draw(5, V, D)

    def make(states_MD: Tensor) -> Tensor:
        seen.append(len(states_MD))
        return states_MD @ head_VD.T

    states_ND = draw(6, N, D)
    targets, labels_N = DenseTargets(states_ND, make), torch.zeros(N, dtype=torch.int64)
    (sliced, inputs), case = head_of(), ("dense", "four of them")
    lazy, _ = in_slices(case, sliced, BatchTargets(targets, {}, labels_N))
    assert seen == [3, 3, 1], "once a slice, however many losses look at it"
    eager, _ = through_all_logits(case, sliced, BatchTargets(DenseTargets(states_ND @ head_VD.T), {}, labels_N))
    torch.testing.assert_close(torch.autograd.grad(lazy, inputs), torch.autograd.grad(eager, inputs))
    assert [(part.start, len(logits)) for part, logits in sliced.parts()] == [(0, 3), (3, 3), (6, 1)]


def test_a_frozen_projection_gets_no_gradient_and_the_states_still_do() -> None:
    case = ("sparse", "forward")
    (sliced, inputs), batch_targets = head_of(), targets_for(case)
    (expected,) = torch.autograd.grad(through_all_logits(case, sliced, batch_targets)[0], inputs[:1])
    inputs[1].requires_grad_(False)
    inputs[2].requires_grad_(False)
    in_slices(case, sliced, batch_targets)[0].backward()
    torch.testing.assert_close(inputs[0].grad, expected)
    assert inputs[1].grad is None
    assert inputs[2].grad is None


def test_without_gradients_the_same_values_are_summed() -> None:
    case = ("sparse", "three of them")
    (sliced, _), batch_targets = head_of(), targets_for(case)
    expected, _ = in_slices(case, sliced, batch_targets)
    for quiet in (torch.no_grad(), torch.inference_mode()):
        with quiet:
            total, _ = in_slices(case, sliced, batch_targets)
        assert not total.requires_grad
        torch.testing.assert_close(total, expected.detach())


def test_a_second_time_through_the_same_graph_is_refused() -> None:
    case = ("sparse", "forward")
    (sliced, _), batch_targets = head_of(), targets_for(case)
    total, _ = in_slices(case, sliced, batch_targets)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_tied_weights_get_both_gradients() -> None:
    """An embedding that is the projection too."""
    case, ids_N = ("sparse", "forward"), torch.tensor([1, 5, 5, 0, 8, 2, 7])
    batch_targets, weight_VD = targets_for(case), draw(3, V, D).requires_grad_()
    sliced = SlicedLogits(weight_VD[ids_N].tanh(), weight_VD, None, LogitStep(), torch.float64)
    (expected,) = torch.autograd.grad(through_all_logits(case, sliced, batch_targets)[0], weight_VD, retain_graph=True)
    in_slices(case, sliced, batch_targets)[0].backward()
    torch.testing.assert_close(weight_VD.grad, expected)


@pytest.mark.parametrize(
    ("weights", "dtype", "error"),
    [
        (torch.float32, torch.bfloat16, 0.03),
        (torch.bfloat16, torch.bfloat16, 0.03),
        (torch.float32, torch.float16, 0.01),
        (torch.float32, torch.float32, 1e-5),
    ],
    ids=["autocast bf16", "bf16 weights", "autocast fp16", "fp32"],
)
def test_half_precision_rounds_products_and_nothing_else(
    weights: torch.dtype, dtype: torch.dtype, error: float
) -> None:
    case = ("sparse", "forward")
    (sliced, inputs), batch_targets = head_of(), targets_for(case)
    expected = torch.autograd.grad(in_slices(case, sliced, batch_targets)[0], inputs)
    rounded = [tensor.detach().to(weights).requires_grad_() for tensor in inputs]
    seen = []
    half = SlicedLogits(*rounded, LogitStep(), dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # must not reach the losses
        total, _ = in_slices(case, half, batch_targets)
        seen = [logits.dtype for _, logits in half.parts()]
    assert set(seen) == {torch.float32}
    found = torch.autograd.grad(total, rounded)
    assert [gradient.dtype for gradient in found] == [weights] * 3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=error, atol=error * float(other.abs().max()))


def test_gradients_too_small_for_float16_are_not_lost() -> None:
    """Autocast's loss scale is applied afterwards, when it would be too late."""
    case = ("sparse", "forward")
    (sliced, inputs), batch_targets = head_of(), targets_for(case)
    expected = torch.autograd.grad(in_slices(case, sliced, batch_targets)[0], inputs)
    half = SlicedLogits(*[t.detach().float().requires_grad_() for t in inputs], LogitStep(), torch.float16)
    total, _ = total_loss(specs_of(case), Outputs(None, (), half), batch_targets, NOTHING, torch.tensor([1e-8]))
    weight = half.weight_VD
    (found,) = torch.autograd.grad(total * 1e8, weight)
    torch.testing.assert_close(found.double(), expected[1], rtol=0.02, atol=0.02 * float(expected[1].abs().max()))


class Student(nn.Module):
    """A projection that is kept out of its own forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.projection = nn.Linear(D, D).double(), nn.Linear(D, V).double()

    def forward(self, states_ND: Tensor) -> tuple[Tensor, Tensor]:
        below_ND = self.below(states_ND)
        return below_ND, self.projection(below_ND[:0])


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_data_parallelism_sees_every_gradient_once(process_group: None) -> None:
    torch.manual_seed(0)
    case, student = ("sparse", "forward"), Student()
    wrapped, states_ND, batch_targets = DistributedDataParallel(student), draw(2, N, D), targets_for(case)
    projection = student.projection

    def logits_of(model: Callable[[Tensor], tuple[Tensor, Tensor]]) -> SlicedLogits:
        return SlicedLogits(model(states_ND)[0], projection.weight, projection.bias, LogitStep(), torch.float64)

    names = [name for name, _ in student.named_parameters()]
    expected = torch.autograd.grad(
        through_all_logits(case, logits_of(student), batch_targets)[0], list(student.parameters())
    )
    for _ in range(2):  # the second time, the buckets are those of the first
        student.zero_grad()
        in_slices(case, logits_of(wrapped), batch_targets)[0].backward()
        for name, parameter, gradient in zip(names, student.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, msg=name)
