"""What is drawn at random is unbiased, has the variance that its rule states, and never has no mass.

Shapes: N positions, V vocabulary.
"""

import math

import pytest
import torch
from torch import Tensor

from shared.dump.codecs import Draws, Selection, Sparse, Threshold
from shared.dump.codecs.selection import blocks, sampling
from shared.dump.codecs.selection import rules as selection
from tests.shared.round_trips import keys_of, random_logits, round_trip

MANY = 20_000


def repeated(logits_V: Tensor, rule: Selection, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(weights [MANY, V] of one distribution under many keys, its probabilities)."""
    codec = Sparse(name="d", selection=rule, vocabulary=len(logits_V), levels=65_000)
    found = round_trip(codec, logits_V.expand(MANY, -1).contiguous(), keys_of(MANY, seed))
    weights_NV = torch.zeros(MANY, len(logits_V), dtype=torch.float64)
    weights_NV.scatter_add_(1, found.ids_NK, found.log_probs_NK.double().exp())
    return weights_NV, logits_V.double().softmax(-1)


def z_scores(values_NV: Tensor, means_V: Tensor, variances_V: Tensor) -> Tensor:
    return (values_NV.mean(0) - means_V) / (variances_V / len(values_NV)).sqrt()


@pytest.mark.parametrize("vocabulary", [60, 200])
def test_threshold_sampling_is_unbiased_with_the_variance_of_a_bernoulli(vocabulary: int) -> None:
    """In one block and in four: of every id the mean within 4 standard errors, and p (t - p) as its variance."""
    t = 2.4 / vocabulary
    weights_NV, p = repeated(random_logits(7, 1, vocabulary, 1.5)[0], Threshold(threshold=t))
    is_exact = p > t
    assert 3 < is_exact.sum() < vocabulary / 3
    assert (weights_NV[:, is_exact] - p[is_exact]).abs().max() < 1e-4
    sampled_NV, p = weights_NV[:, ~is_exact], p[~is_exact]
    assert ((sampled_NV == 0) | ((sampled_NV - t).abs() < 1e-7)).all()
    z = z_scores(sampled_NV, p, p * (t - p))
    assert z.abs().max() < 4
    assert 0.3 < z.square().mean() < 2
    # The rarest ids come so seldom that their variance is hardly known.
    common = p > 0.02 * t
    assert (sampled_NV.var(0) / (p * (t - p)) - 1).abs()[common].max() < 0.25


def test_threshold_sampling_keeps_as_many_ids_as_the_tail_has_thresholds() -> None:
    """Systematic, not independent: the number of sampled ids is that of the tail / t, rounded down or up."""
    t = 0.04
    for seed, vocabulary in enumerate((60, 60, 60, 200, 1000)):
        logits = random_logits(seed, 1, vocabulary, 0.5 + seed % 3)[0]
        weights_NV, p = repeated(logits, Threshold(threshold=t), seed)
        is_exact = (p > t) | (p == p.max())
        tail = p[~is_exact].sum().item()
        counts_N = (weights_NV[:, ~is_exact] > 0).sum(1)
        assert set(counts_N.tolist()) == {math.floor(tail / t), math.ceil(tail / t)}
        assert counts_N.double().mean().item() == pytest.approx(tail / t, abs=0.02)
        assert (weights_NV.sum(1) - 1).abs().max() <= t


@pytest.mark.parametrize("vocabulary", [60, 200])
def test_draws_are_unbiased_with_the_variance_of_independent_draws(vocabulary: int) -> None:
    weights_NV, p = repeated(random_logits(8, 1, vocabulary, 1.5)[0], Draws(draws=16))
    assert (weights_NV.sum(1) - 1).abs().max() < 1e-5
    z = z_scores(weights_NV, p, p * (1 - p) / 16)
    assert z.abs().max() < 4
    assert 0.3 < z.square().mean() < 2
    # The rarest ids come so seldom that their variance is hardly known.
    common = p > 0.005
    assert (weights_NV.var(0) / (p * (1 - p) / 16) - 1).abs()[common].max() < 0.1


@pytest.mark.parametrize("u", [0.0, 2**-53, 1 - 1e-8, 1 - 2**-53])
def test_the_first_and_the_last_random_numbers_draw_no_id_without_mass(
    u: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded to float32, they are the very ends of the running sum."""
    monkeypatch.setattr(selection, "uniforms", lambda keys_N, count: torch.full((len(keys_N), count), u).double())
    for vocabulary, ruled_out in ((40, [0, 1]), (200, [*range(130), 150])):
        logits = random_logits(4, 5, vocabulary)
        logits[:, ruled_out] = logits[:, [-2, -1]] = -torch.inf
        best = vocabulary - 38
        logits[:, best] = 9.0
        for rule in (Draws(draws=3), Threshold(threshold=1e-4), Threshold(threshold=0.5)):
            found = round_trip(Sparse(name="d", selection=rule, vocabulary=vocabulary), logits)
            kept = found.ids_NK[found.log_probs_NK > -torch.inf].tolist()
            assert not {*ruled_out, vocabulary - 2, vocabulary - 1} & set(kept)
            assert found.sampled_NK is not None
            if isinstance(rule, Threshold):
                assert best not in found.ids_NK[found.sampled_NK].tolist(), "an exact id has nothing left to sample"


@pytest.mark.parametrize("u", [1 - 1e-8, 1 - 3e-8])
def test_no_id_is_sampled_twice_where_every_one_is_as_probable_as_the_threshold(
    u: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding alone decides then which id a mark falls on."""
    monkeypatch.setattr(selection, "uniforms", lambda keys_N, count: torch.full((len(keys_N), count), u).double())
    for rest in (0.132, 0.3, 0.7, 0.9):
        logits = torch.full((1, 2000), math.log(rest))
        logits[0, 0] = 0.0
        softmax = selection.Softmax.of(logits)
        threshold = float(softmax.mass_NV[0, 1].double() / softmax.total_N1.double())
        ids = Threshold(threshold=threshold).select(softmax, keys_of(1)).ids_E.tolist()
        assert len(ids) > 1900
        assert len(set(ids)) == len(ids)


def test_a_tail_of_a_whole_number_of_thresholds_is_sampled_that_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last mark lies at the very end of the running sum, where there is no id left."""
    monkeypatch.setattr(selection, "uniforms", lambda keys_N, count: torch.zeros(len(keys_N), count).double())
    found = round_trip(Sparse(name="d", selection=Threshold(threshold=2 / 11), vocabulary=11), torch.zeros(1, 11))
    assert found.sampled_NK is not None
    assert found.sampled_NK.sum() == 5
    assert found.ids_NK.max() < 11


@pytest.mark.parametrize("nudge", [-1e-12, 1e-12])
def test_a_mark_at_the_end_of_a_block_is_neither_lost_nor_drawn_twice(nudge: float) -> None:
    """There float64, which knows the block, and float32, which looks into it, may disagree."""
    for seed in range(200):
        mass = random_logits(seed, 1, 200).exp()
        mass[0, ::3] = mass[0, 60:68] = 0.0
        sums = blocks.sums(mass)
        step = mass.amax(-1, keepdim=True).double() * 2
        first_end = (sums[:, :1] / step).remainder(1)
        u = (first_end + nudge).clamp(0, 1 - 1e-9)
        ends = (sums.cumsum(-1) / step - u).ceil().long()
        wanted = torch.diff(ends, prepend=torch.zeros_like(ends[:, :1])).clamp(min=0)
        owners, ids = sampling.systematic(mass, sums, step, u)
        assert torch.bincount(ids // blocks.SIZE, minlength=4).tolist() == wanted[0].tolist()
        assert (mass[0, ids] > 0).all()
        assert owners.tolist() == [0] * len(ids)
