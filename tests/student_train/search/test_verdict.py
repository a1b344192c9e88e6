"""Whether maps differ: found where they do, not found where only seeds do, and not claimed from one seed."""

import numpy as np
import pytest

from student_train.search.verdict import compared, verdict


def scores(maps: list[float], seeds: list[float], noise: float, seed: int = 0) -> np.ndarray:
    chance = np.random.default_rng(seed)
    return np.asarray(maps)[:, None] + np.asarray(seeds) + noise * chance.standard_normal((len(maps), len(seeds)))


def test_maps_that_differ_by_more_than_seeds_matter() -> None:
    found = verdict(scores([0.1, 0.2, 0.3, 0.4], [0.0, 5.0, 1.0], noise=0.01).tolist())
    assert found is not None
    assert found.mattered
    assert found.between_maps == pytest.approx(0.129, abs=0.01)
    assert found.between_seeds == pytest.approx(0.01, rel=0.5)  # and not the 2.6 that a seed does to all maps alike
    assert found.sentence().startswith("The mapping mattered here: the means of 4 maps spread by 0.1")


def test_maps_that_differ_by_chance_alone_are_rarely_said_to_matter() -> None:
    found = [verdict(scores([0.0] * 6, [0.0, 1.0, 2.0], 0.1, seed).tolist()) for seed in range(20)]
    assert sum(one is not None and one.mattered for one in found) <= 3
    said = [one.sentence() for one in found if one is not None and not one.mattered]
    assert all(line.startswith("The mapping did not matter here: the means of 6 maps spread by ") for line in said)
    # A uniform distribution, as that of any test without an effect.
    assert np.mean([one.probability for one in found if one is not None]) == pytest.approx(0.5, abs=0.2)


def test_one_seed_says_nothing() -> None:
    found = verdict([[0.1], [0.2], [0.3]])
    assert found is not None
    assert (found.between_seeds, found.probability, found.mattered) == (None, 1.0, False)
    assert "one seed cannot tell" in found.sentence()
    assert verdict([[0.1, 0.2]]) is None
    assert verdict([[], []]) is None


def test_two_maps_are_compared_seed_by_seed() -> None:
    difference, error = compared([1.0, 2.0, 3.0], [0.9, 1.8, 2.7])
    assert (difference, error) == (pytest.approx(0.2), pytest.approx(0.1 / 3**0.5))
    assert compared([1.0], [0.5]) == (0.5, None)
