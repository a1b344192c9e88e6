"""Costs of all pairs of layers are the losses of the pairs, each for itself."""

from typing import Any

import pytest
import torch
from torch import Tensor

from shared.dump.codecs import Int8Vectors
from student_train.forward.attention import Attended
from student_train.forward.teacher_vectors import TeacherVectors
from student_train.losses import relation_formulas
from student_train.losses.emd.terms import AttentionTerms, Sample
from student_train.losses.relation_formulas import relation_loss

LENGTHS = (5, 1, 9, 5, 0, 2, 9)
HEADS = 2


def student_part(seed: int) -> Tensor:
    return torch.randn(
        sum(LENGTHS), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_()


def teacher_part(seed: int) -> TeacherVectors:
    codec = Int8Vectors(name="queries.2", width=24)
    states = torch.randn(sum(LENGTHS), 24, generator=torch.Generator().manual_seed(seed)) * 2
    return TeacherVectors(codec, codec.encode(states))


def terms(is_causal: bool) -> AttentionTerms:
    """Two layers of a student and three of a teacher of twice the width."""
    layers = [{"queries": student_part(seed), "keys": student_part(seed + 10)} for seed in range(2)]
    return AttentionTerms(
        [Attended(parts, LENGTHS, is_causal, HEADS) for parts in layers],
        [(teacher_part(seed), teacher_part(seed + 10)) for seed in range(3)],
    )


def alone(made: AttentionTerms, layer: int, other: int) -> Tensor:
    own = made.student[layer]
    both = own.parts_TD["queries"], own.parts_TD["keys"]
    return relation_loss(both, made.teacher[other], LENGTHS, HEADS, own.is_causal, "scores-mse")


@pytest.mark.parametrize("slice_numbers", [1, 60, 2**20])
@pytest.mark.parametrize("is_causal", [False, True])
def test_costs_of_attention_are_the_losses_of_its_pairs(
    is_causal: bool, slice_numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relation_formulas, "SLICE_NUMBERS", slice_numbers)
    made = terms(is_causal)
    wanted = torch.tensor([[alone(made, layer, other).item() for other in range(3)] for layer in range(2)])
    found = made.costs(Sample.of(LENGTHS, None, torch.device("cpu")))
    assert not found.requires_grad
    torch.testing.assert_close(found.float(), wanted, rtol=1e-5, atol=0)
    flow = torch.tensor([[0.5, 0.0, 0.2], [0.0, 0.3, 0.0]], dtype=torch.float64)
    assert made.loss(flow).item() == pytest.approx(float((flow * wanted).sum()), rel=1e-5)


def test_only_pairs_with_a_flow_are_computed_for_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(
        "student_train.losses.emd.terms.relation_loss", lambda *given: calls.append(given) or relation_loss(*given)
    )
    made = terms(is_causal=False)
    made.loss(torch.tensor([[0.5, 0.0, 0.2], [0.0, 0.3, 0.0]], dtype=torch.float64)).backward()
    assert len(calls) == 3
    assert all(part.grad is not None and part.grad.any() for own in made.student for part in own.parts_TD.values())
