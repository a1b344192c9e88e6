"""A genetic algorithm over short lists of whole numbers, as pure functions of what they are given and of a generator.

Nothing here knows what a genome means or how it is scored: members of a generation come ranked, the best first, and
selection looks at ranks alone, so that scores of any scale and direction will do.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

Genome = tuple[int, ...]

# Attempts at a child that is new in its generation, before a random genome takes its place.
MOST_ATTEMPTS = 100


@dataclass(frozen=True)
class Space:
    """All genomes that there are.

    Attributes:
        alleles: for each gene, the values that it may have.
        excluded: genomes that have valid values and are none all the same.
    """

    alleles: tuple[tuple[int, ...], ...]
    excluded: frozenset[Genome] = frozenset()

    @property
    def size(self) -> int:
        """The number of genomes."""
        return math.prod(map(len, self.alleles)) - len(self.excluded)

    def all(self) -> list[Genome]:
        """Return all genomes; for small spaces."""
        return [genome for genome in itertools.product(*self.alleles) if genome not in self.excluded]

    def random(self, chance: Random) -> Genome:
        """Return a genome; each is equally probable."""
        while True:
            genome = tuple(chance.choice(values) for values in self.alleles)
            if genome not in self.excluded:
                return genome


@dataclass(frozen=True)
class Breeding:
    """How a generation follows from the one before it.

    Attributes:
        population: genomes of a generation; all of them are different.
        elite: how many of the best pass unchanged.
        tournament: of so many members, drawn with replacement, the best one becomes a parent.
        crossover: the probability that a child has two parents.
    """

    population: int = 12
    elite: int = 2
    tournament: int = 2
    crossover: float = 0.8


def first_generation(space: Space, population: int, chance: Random) -> tuple[Genome, ...]:
    """Return different random genomes; all that there are, if they are no more than the population."""
    if space.size <= population:
        return tuple(space.all())
    found: dict[Genome, None] = {}
    while len(found) < population:
        found[space.random(chance)] = None
    return tuple(found)


def next_generation(space: Space, ranked: Sequence[Genome], breeding: Breeding, chance: Random) -> tuple[Genome, ...]:
    """Return the generation after one whose members are ranked, the best first: its elite, then their children."""
    size = min(breeding.population, space.size)
    found = dict.fromkeys(ranked[: min(breeding.elite, size)])
    while len(found) < size:
        found[_new_child(space, ranked, found, breeding, chance)] = None
    return tuple(found)


def _new_child(
    space: Space, ranked: Sequence[Genome], taken: dict[Genome, None], breeding: Breeding, chance: Random
) -> Genome:
    for _ in range(MOST_ATTEMPTS):
        first, second = (tournament(ranked, breeding.tournament, chance) for _ in range(2))
        made = crossed(first, second, chance) if chance.random() < breeding.crossover else first
        made = mutated(space, made, chance)
        if made not in taken and made not in space.excluded:
            return made
    while (made := space.random(chance)) in taken:
        pass
    return made


def tournament(ranked: Sequence[Genome], size: int, chance: Random) -> Genome:
    """Return the best of `size` members, drawn with replacement."""
    return ranked[min(chance.randrange(len(ranked)) for _ in range(size))]


def crossed(first: Genome, second: Genome, chance: Random) -> Genome:
    """Return the beginning of one genome and the end of the other, cut between any two genes (one-point crossover)."""
    if len(first) < 2:
        return first
    point = chance.randrange(1, len(first))
    return first[:point] + second[point:]


def mutated(space: Space, genome: Genome, chance: Random) -> Genome:
    """Return the genome with each of its M genes changed to another value with the probability 1/M."""

    def changed(gene: int, values: tuple[int, ...]) -> int:
        others = [value for value in values if value != gene]
        return chance.choice(others) if others and chance.random() < 1 / len(genome) else gene

    return tuple(map(changed, genome, space.alleles))
