"""Some ids and the rest: values, gradients, and the logits' own memory. Shapes: N positions, V vocabulary, K ids."""

import pytest
import torch
from torch import Tensor

from student_train.losses.lumping import lump

INFINITY = float("inf")
IDS_NK = torch.tensor([[4, 0, 2], [1, 5, 0], [3, 3, 3], [0, 0, 0]])
# The second row has a filling; the third one id, at which its fillings point too; the last nothing.
IS_KEPT_NK = torch.tensor([[True, True, True], [True, True, False], [False, True, False], [False, False, False]])


def draw_logits(seed: int = 0) -> Tensor:
    return 3 * torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept_rows(logits_NV: Tensor) -> Tensor:
    """Of a row without kept ids the rest is unspecified."""
    return lump(logits_NV, IDS_NK, IS_KEPT_NK)[:3]


def test_ids_keep_their_logits_and_the_rest_is_the_log_of_its_exponentials_sum() -> None:
    logits_NV = draw_logits()
    classes = lump(logits_NV, IDS_NK, IS_KEPT_NK).tolist()
    for row in range(3):
        pairs = zip(IDS_NK[row].tolist(), IS_KEPT_NK[row].tolist(), strict=True)
        kept = [i if is_kept else None for i, is_kept in pairs]
        assert classes[row][:3] == [-INFINITY if i is None else logits_NV[row, i].item() for i in kept]
        rest = [i for i in range(6) if i not in kept]
        assert classes[row][3] == pytest.approx(logits_NV[row, rest].exp().sum().log().item())


def test_gradients_agree_with_finite_differences() -> None:
    def probabilities(logits_NV: Tensor) -> Tensor:
        return kept_rows(logits_NV).softmax(1)

    assert torch.autograd.gradcheck(probabilities, draw_logits().requires_grad_())


def test_a_filling_gets_no_gradient_whatever_comes_back() -> None:
    logits_NV = draw_logits().requires_grad_()
    classes_NC = kept_rows(logits_NV)
    (gradient_NV,) = torch.autograd.grad(classes_NC, logits_NV, torch.ones_like(classes_NC))
    for row in range(3):
        kept = sorted({int(i) for i, is_kept in zip(IDS_NK[row], IS_KEPT_NK[row], strict=True) if is_kept})
        assert (gradient_NV[row, kept] == 1).all()
        assert gradient_NV[row].sum().item() == pytest.approx(len(kept) + 1)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("ruled_out", [False, True])
def test_where_nothing_is_left_the_rest_has_no_mass_and_no_gradient(ruled_out: bool) -> None:
    """Every id is kept, or the student itself rules out those that are not."""
    logits_NV, ids_NK = draw_logits(), torch.arange(6).expand(4, 6)
    if ruled_out:
        logits_NV[:, 4:], ids_NK = -INFINITY, ids_NK[:, :4]
    logits_NV.requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        classes_NC = lump(logits_NV, ids_NK, torch.ones_like(ids_NK, dtype=torch.bool))
        (gradient_NV,) = torch.autograd.grad(classes_NC.log_softmax(1)[:, 0].sum(), logits_NV)
    assert (classes_NC[:, -1] == -INFINITY).all()
    expected = torch.autograd.grad(logits_NV.log_softmax(1)[:, 0].sum(), logits_NV)[0]
    torch.testing.assert_close(gradient_NV, expected)


def test_a_distant_rest_keeps_its_digits() -> None:
    logits_NV = torch.tensor([[200.0, 0.0, 1.0, -1.0]])
    rest = lump(logits_NV, torch.tensor([[0]]), torch.tensor([[True]]))[0, 1]
    assert rest.item() == pytest.approx(torch.tensor([0.0, 1.0, -1.0]).logsumexp(0).item())


def test_overwriting_changes_nothing_but_the_logits_and_goes_backward_once() -> None:
    logits_NV = draw_logits().requires_grad_()
    expected_NC = lump(logits_NV, IDS_NK, IS_KEPT_NK).softmax(1)
    weights_NC = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (expected_NV,) = torch.autograd.grad((expected_NC * weights_NC).sum(), logits_NV)
    used_NV = logits_NV.detach().clone().requires_grad_()
    found_NC = lump(used_NV, IDS_NK, IS_KEPT_NK, overwrite=True).softmax(1)
    (found_NV,) = torch.autograd.grad((found_NC * weights_NC).sum(), used_NV, retain_graph=True)
    torch.testing.assert_close(found_NC, expected_NC)
    torch.testing.assert_close(found_NV, expected_NV)
    assert found_NV.data_ptr() == used_NV.data_ptr(), "nothing as large as the logits was made"
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad((found_NC * weights_NC).sum(), used_NV)
