"""Embeddings of rows: each way of pooling against plain loops in float64, values and gradients."""

from typing import get_args

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from shared.dump.facts import Pooling, PoolingMode
from shared.models.pooling import pooled, pooling_of, set_pooling

MODES = get_args(PoolingMode)


def plain(states_TD: Tensor, lengths: list[int], mode: str, normalized: bool) -> Tensor:
    rows, start = [], 0
    for length in lengths:
        row_LD = states_TD[start : start + length]
        start += length
        if not length:
            row_D = torch.zeros(states_TD.shape[1], dtype=states_TD.dtype)
        elif mode == "mean":
            row_D = sum(row_LD[1:], start=row_LD[0]) / length
        elif mode == "max":
            row_D = torch.stack([max(row_LD[:, at]) for at in range(row_LD.shape[1])])
        else:
            row_D = row_LD[0 if mode == "cls" else -1]
        if normalized and length:
            row_D = row_D / (row_D * row_D).sum().sqrt()
        rows.append(row_D)
    return torch.stack(rows)


@pytest.mark.parametrize("mode", MODES)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6), normalized=st.booleans(), seed=st.integers(0, 99))
def test_an_embedding_and_its_gradient_are_those_of_plain_loops(
    mode: PoolingMode, lengths: list[int], normalized: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    states_TD = torch.randn(sum(lengths), 3, generator=generator, dtype=torch.float64).requires_grad_()
    weights_RD = torch.randn(len(lengths), 3, generator=generator, dtype=torch.float64)
    found_RD = pooled(states_TD, lengths, Pooling(mode=mode, normalized=normalized))
    wanted_RD = plain(states_TD, lengths, mode, normalized)
    assert torch.allclose(found_RD, wanted_RD, atol=1e-12)
    if any(lengths):
        gradients = [torch.autograd.grad((each * weights_RD).sum(), states_TD)[0] for each in (found_RD, wanted_RD)]
        assert torch.allclose(*gradients, atol=1e-10)


def test_half_precision_is_pooled_in_float32() -> None:
    states_TD = torch.full((4096, 1), 1.001, dtype=torch.bfloat16)
    found_RD = pooled(states_TD, [4096], Pooling())
    assert found_RD.dtype == torch.float32
    assert found_RD.item() == states_TD[0, 0].item()


def test_a_model_has_the_pooling_that_it_was_given() -> None:
    model = torch.nn.Linear(1, 1)
    assert pooling_of(model) is None
    set_pooling(model, Pooling(mode="cls"))
    assert pooling_of(model) == Pooling(mode="cls")
    assert set(model.state_dict()) == {"weight", "bias"}
