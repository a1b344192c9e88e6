"""Longhand float64 references for what a sparse codec keeps: by rule, and all that it states.

Shapes: N positions, V vocabulary, K most that a position keeps.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shared.dump.codecs import Draws, Sparse, SparseTargets, Threshold, TopK, TopP
from shared.dump.codecs.selection.uniforms import uniforms

# What float32 may add to a stated bound of p ** 0.4, and the band around a rule's boundary in which it may err.
NOISE, BAND = 2e-6, 1e-5


def check_top(kept: list[int], p_V: np.ndarray) -> None:
    """That these are as many of the most probable ids (ties may fall either way)."""
    least = np.sort(p_V)[::-1][len(kept) - 1]
    assert all(p_V[index] >= least * (1 - BAND) for index in kept)
    assert set(np.flatnonzero(p_V > least * (1 + BAND))) <= set(kept)


def check_top_k(rule: TopK, exact: list[int], sampled: dict[int, float], p_V: np.ndarray, key: int) -> None:
    assert len(exact) == min(rule.k, len(p_V))
    assert not sampled
    check_top(exact, p_V)


def check_top_p(rule: TopP, exact: list[int], sampled: dict[int, float], p_V: np.ndarray, key: int) -> None:
    falling = np.sort(p_V)[::-1][: rule.k]
    before = np.cumsum(falling) - falling
    assert max(1, (before < rule.p - BAND).sum()) <= len(exact) <= (before < rule.p + BAND).sum()
    assert not sampled
    check_top(exact, p_V)


def check_threshold(rule: Threshold, exact: list[int], sampled: dict[int, float], p_V: np.ndarray, key: int) -> None:
    must = set(np.flatnonzero(p_V > rule.threshold * (1 + BAND)))
    may = set(np.flatnonzero(p_V > rule.threshold * (1 - BAND))) | set(np.flatnonzero(p_V > p_V.max() * (1 - BAND)))
    assert must <= set(exact) <= may
    assert exact
    if not rule.samples:
        assert not sampled
        return
    # The running sum of p / threshold over the others passes u, u + 1, u + 2, ... within the ids that are drawn.
    others_V = p_V.copy()
    others_V[exact] = 0
    running_V = np.cumsum(others_V) / rule.threshold
    noise = 1e-6 / rule.threshold
    u = uniforms(torch.tensor([key]), 1).item()
    marks = u + np.arange(len(sampled))
    for mark, index in zip(marks, sorted(sampled), strict=True):
        assert running_V[index] - others_V[index] / rule.threshold - noise <= mark <= running_V[index] + noise
        assert p_V[index] > 0
    assert u + len(sampled) >= running_V[-1] - noise
    assert all(weight == pytest.approx(rule.threshold, rel=1e-6) for weight in sampled.values())


def check_draws(rule: Draws, exact: list[int], sampled: dict[int, float], p_V: np.ndarray, key: int) -> None:
    assert not exact
    times = {index: weight * rule.draws for index, weight in sampled.items()}
    assert all(count == pytest.approx(round(count), rel=1e-5) and round(count) >= 1 for count in times.values())
    assert sum(map(round, times.values())) == rule.draws
    assert all(p_V[index] > 0 for index in sampled)
    running_V = np.cumsum(p_V)
    marks = uniforms(torch.tensor([key]), rule.draws)[0].numpy()
    unclear = sum(np.abs(running_V - mark).min() < 1e-6 for mark in marks)
    wanted = np.bincount(np.searchsorted(running_V, marks, side="right").clip(max=len(p_V) - 1), minlength=len(p_V))
    found = np.zeros(len(p_V))
    for index, count in times.items():
        found[index] = round(count)
    assert np.abs(found - wanted).sum() <= 2 * unclear


CHECKS: dict[type, Any] = {TopK: check_top_k, TopP: check_top_p, Threshold: check_threshold, Draws: check_draws}


def check_targets(codec: Sparse, logits_NV: Tensor, keys_N: Tensor, found: SparseTargets) -> None:
    """That decoded targets are what the codec states about these logits."""
    p_NV = logits_NV.double().softmax(-1)
    rule = codec.selection
    tail_levels = 255 if codec.levels <= 250 else 65_535
    assert (found.sampled_NK is not None) == codec.samples
    for index, p in enumerate(p_NV):
        log_probs_K = found.log_probs_NK[index]
        is_there_K = log_probs_K != -torch.inf
        is_sampled_K = torch.zeros_like(is_there_K) if found.sampled_NK is None else found.sampled_NK[index]
        assert not (is_sampled_K & ~is_there_K).any(), "a filling is not sampled"
        ids_K = found.ids_NK[index]
        every = ids_K[is_there_K].tolist()
        assert len(set(every)) == len(every)
        exact = ids_K[is_there_K & ~is_sampled_K]
        weights = log_probs_K.double().exp()
        sampled = dict(zip(ids_K[is_sampled_K].tolist(), weights[is_sampled_K].tolist(), strict=True))
        CHECKS[type(rule)](rule, exact.tolist(), sampled, p.numpy(), int(keys_N[index]))

        q, p_exact = weights[is_there_K & ~is_sampled_K], p[exact]
        bound = torch.where(p_exact >= p.max() * (1 - BAND), 1.5, 0.5) / codec.levels
        assert ((p_exact**0.4 - q**0.4).abs() <= bound + NOISE).all()
        if len(exact):
            assert p[found.argmax()[index]] >= p.max() * (1 - 1e-6), "the teacher's first choice is another"
        outside = p.clone().index_fill(0, exact, 0.0).sum().item()
        assert abs(outside**0.4 - found.tail_N[index].double().exp().item() ** 0.4) <= 0.5 / tail_levels + NOISE

    assert tuple(found.log_sums_N) == codec.temperatures
    for temperature, sums_N in found.log_sums_N.items():
        wanted_N = (logits_NV.double().log_softmax(-1) / temperature).logsumexp(-1)
        assert ((sums_N - wanted_N).abs() <= wanted_N.abs() * (2**-11 + 1e-6) + 2**-25 + 2e-6 / temperature).all()
