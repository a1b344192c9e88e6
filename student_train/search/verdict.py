"""Whether the maps differ by more than chance: the spread between maps against the spread between seeds.

Every map is trained with the same seeds, and at one seed all maps have the same initial weights, order of rows and
held-out rows. If the map made no difference, its name would tell nothing: within each seed the scores could be dealt
out to the maps anew. How often dealing them out gives means as far apart as the real ones is the probability of a
permutation test, which assumes nothing about how scores are distributed.

Shapes: D deals, M maps, S seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DEALS, DEALS_AT_ONCE = 10_000, 100
# The usual threshold: one in twenty experiments without any effect would be taken for one.
LEVEL = 0.05
DIGITS = 3


@dataclass(frozen=True)
class Verdict:
    """What several seeds say about several maps.

    Attributes:
        between_maps: the standard deviation of the maps' means.
        between_seeds: the standard deviation of one map's scores, after what a seed does to all maps alike is taken
            away; None for one seed.
        probability: of means at least as far apart, if the maps made no difference.
    """

    maps: int
    seeds: int
    between_maps: float
    between_seeds: float | None
    probability: float

    @property
    def mattered(self) -> bool:
        """Whether the maps differ by more than chance explains."""
        return self.probability < LEVEL

    def sentence(self) -> str:
        """Say it plainly."""
        maps = f"{self.maps} maps"
        if self.between_seeds is None:
            return (
                f"Whether the mapping mattered, one seed cannot tell (the scores of {maps} spread by "
                f"{self.between_maps:.{DIGITS}g}); give --confirm-seeds 3."
            )
        spread = (
            f"the means of {maps} spread by {self.between_maps:.{DIGITS}g} (standard deviation), the scores of one map "
            f"by {self.between_seeds:.{DIGITS}g} from seed to seed, beside what a seed does to all maps alike"
        )
        chance = f"by chance alone means would be as far apart in {_of_100(self.probability)}"
        if not self.mattered:
            return f"The mapping did not matter here: {spread}; {chance}."
        less = ", though less than the seed" if self.between_maps < self.between_seeds else ""
        return f"The mapping mattered here{less}: {spread}; {chance}."


def verdict(scores: Sequence[Sequence[float]], seed: int = 0) -> Verdict | None:
    """Return what the scores of at least two maps (a list of one score for each seed) say; None for fewer."""
    if len(scores) < 2 or not len(scores[0]):
        return None
    scores_MS = np.asarray(scores, np.float64)
    maps, seeds = scores_MS.shape
    between = float(scores_MS.mean(1).std(ddof=1))
    left_MS = scores_MS - scores_MS.mean(0) - scores_MS.mean(1, keepdims=True) + scores_MS.mean()
    within = float(np.sqrt((left_MS**2).sum() / ((maps - 1) * (seeds - 1)))) if seeds > 1 else None
    chance = np.random.default_rng(seed)
    as_far = 0
    for _ in range(DEALS // DEALS_AT_ONCE):
        dealt_DMS = chance.permuted(np.broadcast_to(scores_MS, (DEALS_AT_ONCE, maps, seeds)), axis=1)
        as_far += int((dealt_DMS.mean(2).std(axis=1, ddof=1) >= between * (1 - 1e-12)).sum())
    return Verdict(maps, seeds, between, within, (as_far + 1) / (DEALS + 1))


def compared(first: Sequence[float], second: Sequence[float]) -> tuple[float, float | None]:
    """Return (the mean difference of two maps' scores at the same seeds, its standard error; None for one seed)."""
    differences_S = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    error = float(differences_S.std(ddof=1) / np.sqrt(len(differences_S))) if len(differences_S) > 1 else None
    return float(differences_S.mean()), error


def _of_100(probability: float) -> str:
    return "fewer than 1 of 100 cases" if probability < 0.01 else f"{100 * probability:.0f} of 100 cases"
