"""The search itself: generations, each thinned out by successive halving, from any function that scores genomes.

It is a pure function of the space, the settings, the seed and the scores. A search that was killed therefore runs
again from its first generation, with the scores that it has kept, and makes the same decisions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from student_train.search.genetic import Breeding, Genome, Space, first_generation, next_generation

# (genomes, budget) -> the merit of each, higher is better. They may be worked out side by side.
Evaluate = Callable[[Sequence[Genome], int], Sequence[float]]

# Everything is tried at a quarter of the budget, and one half of it at the whole budget.
SHARE_OF_FIRST_RUNG = 0.25


@dataclass(frozen=True)
class Generation:
    """The members of a generation, the best first, and their merits.

    Attributes:
        ranked: those that had the whole budget, then those that were dropped before; either by merit.
        merits: of the former, at the whole budget.
        dropped: of the latter, at the last budget that they had.
    """

    ranked: tuple[Genome, ...]
    merits: dict[Genome, float]
    dropped: dict[Genome, float]


def rungs(budget: int) -> tuple[int, ...]:
    """Return the budgets of successive halving, the whole one last.

    >>> rungs(100), rungs(1)
    ((25, 100), (1,))
    """
    first = max(1, round(SHARE_OF_FIRST_RUNG * budget))
    return (first, budget) if first < budget else (budget,)


def evolve(
    space: Space, breeding: Breeding, generations: int, budgets: Sequence[int], seed: int, evaluate: Evaluate
) -> list[Generation]:
    """Return all generations of a search.

    Members that already had the whole budget in an earlier generation, such as the elite, keep their merit; the others
    pass through successive halving.
    """
    known: dict[Genome, float] = {}
    history: list[Generation] = []
    members = first_generation(space, breeding.population, Random(f"{seed} first"))
    for number in range(generations):
        new = [genome for genome in members if genome not in known]
        merits, dropped = halved(new, budgets, evaluate)
        known |= merits
        whole = {genome: known[genome] for genome in members if genome in known}
        ranked = (*best_first(whole), *best_first(dropped))
        history.append(Generation(ranked, whole, dropped))
        # A generator of its own, so that what is drawn here does not depend on how often it was used before.
        members = next_generation(space, ranked, breeding, Random(f"{seed} {number}"))
    return history


def halved(
    genomes: Sequence[Genome], budgets: Sequence[int], evaluate: Evaluate
) -> tuple[dict[Genome, float], dict[Genome, float]]:
    """Evaluate genomes by successive halving: all at the first budget, the better half of them at the next one.

    Returns:
        (the merits of those that had the last budget, the last merits of the others).
    """
    left, dropped = list(genomes), dict[Genome, float]()
    for budget in budgets[:-1]:
        merits = dict(zip(left, evaluate(left, budget), strict=True))
        left = best_first(merits)[: math.ceil(len(left) / 2)]
        dropped |= {genome: merit for genome, merit in merits.items() if genome not in left}
    return dict(zip(left, evaluate(left, budgets[-1]), strict=True)), dropped


def best_first(merits: dict[Genome, float]) -> list[Genome]:
    """Return genomes by merit; equal ones in the order of the genomes themselves."""
    return sorted(merits, key=lambda genome: (-merits[genome], genome))
