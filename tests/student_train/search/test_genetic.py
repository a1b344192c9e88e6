"""The genetic operators by their properties, and a search that finds the known optimum of a made-up fitness."""

from collections import Counter
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as some

from student_train.search.evolution import best_first, evolve, halved, rungs
from student_train.search.genetic import (
    Breeding,
    Genome,
    Space,
    crossed,
    first_generation,
    mutated,
    next_generation,
    tournament,
)

GENERATORS = some.integers(0, 2**32).map(Random)


@some.composite
def spaces(draw: some.DrawFn) -> Space:
    """Genomes of 1 to 6 genes, of which the one of first values is excluded if another one is left."""
    alleles = tuple(tuple(range(draw(some.integers(1, 5)))) for _ in range(draw(some.integers(1, 6))))
    zeros = tuple(values[0] for values in alleles)
    return Space(alleles, frozenset({zeros} if sum(map(len, alleles)) > len(alleles) else ()))


def is_in(space: Space, genome: Genome) -> bool:
    return (
        len(genome) == len(space.alleles)
        and all(gene in values for gene, values in zip(genome, space.alleles, strict=True))
        and genome not in space.excluded
    )


@given(spaces(), some.integers(2, 20), GENERATORS)
def test_generations_are_different_genomes_of_the_space(space: Space, population: int, chance: Random) -> None:
    breeding = Breeding(population, elite=1)
    first = first_generation(space, population, chance)
    for members in (first, next_generation(space, first, breeding, chance)):
        assert len(members) == len(set(members)) == min(population, space.size)
        assert all(is_in(space, genome) for genome in members)


@given(spaces(), some.integers(2, 12), some.integers(0, 11), GENERATORS)
def test_the_elite_passes_unchanged_and_in_order(space: Space, population: int, elite: int, chance: Random) -> None:
    assume(elite < min(population, space.size))
    first = first_generation(space, population, chance)
    assert next_generation(space, first, Breeding(population, elite), chance)[:elite] == first[:elite]


@given(some.lists(some.integers(0, 9), min_size=1, max_size=8).map(tuple), GENERATORS)
def test_one_point_crossover_joins_a_beginning_and_an_end(first: Genome, chance: Random) -> None:
    second = tuple(gene + 10 for gene in first)
    child = crossed(first, second, chance)
    point = sum(gene < 10 for gene in child)
    assert child == first[:point] + second[point:]
    assert point >= 1
    assert point < len(first) or len(first) == 1


def test_mutation_changes_one_gene_on_average_and_always_to_another_value() -> None:
    space, chance, genome = Space(((0, 1, 2),) * 8), Random(0), (1,) * 8
    children = [mutated(space, genome, chance) for _ in range(4000)]
    changes = sum(own != before for child in children for own, before in zip(child, genome, strict=True))
    assert changes / 4000 == pytest.approx(1, abs=0.05)
    found = Counter(gene for child in children for gene in child)
    assert found[0] == pytest.approx(found[2], rel=0.1)
    assert mutated(Space(((3,),)), (3,), chance) == (3,)


def test_a_tournament_of_two_prefers_the_better_ranks() -> None:
    ranked, chance = [(rank,) for rank in range(4)], Random(0)
    found = Counter(tournament(ranked, 2, chance)[0] for _ in range(8000))
    # The best of two of four: 7, 5, 3 and 1 of 16 pairs.
    assert [found[rank] / 500 for rank in range(4)] == pytest.approx([7, 5, 3, 1], abs=0.5)


def test_halving_gives_the_whole_budget_to_the_better_half() -> None:
    asked: list[tuple[int, tuple[Genome, ...]]] = []

    def evaluate(genomes: list[Genome], budget: int) -> list[float]:
        asked.append((budget, tuple(sorted(genomes))))
        return [genome[0] * budget for genome in genomes]

    merits, dropped = halved([(value,) for value in range(5)], (1, 2, 4), evaluate)
    assert asked == [
        (1, ((0,), (1,), (2,), (3,), (4,))),
        (2, ((2,), (3,), (4,))),
        (4, ((3,), (4,))),
    ]
    assert merits == {(4,): 16, (3,): 12}
    assert dropped == {(2,): 4, (1,): 1, (0,): 0}
    assert rungs(4) == (1, 4)
    assert rungs(1) == (1,)


SPACE = Space((tuple(range(7)),) * 6, frozenset({(0,) * 6}))
OPTIMUM = (0, 5, 0, 0, 0, 6)


def merit(genome: Genome, budget: int) -> float:
    """Nearer to the optimum is better; a quarter of the budget sees the first genes only."""
    seen = len(genome) if budget >= 4 else 4
    return -sum(abs(own - best) for own, best in zip(genome[:seen], OPTIMUM[:seen], strict=True))


def search(seed: int, generations: int = 80) -> tuple[list, Counter]:
    asked: Counter = Counter()

    def evaluate(genomes: list[Genome], budget: int) -> list[float]:
        asked.update((genome, budget) for genome in genomes)
        return [merit(genome, budget) for genome in genomes]

    return evolve(SPACE, Breeding(), generations, rungs(4), seed, evaluate), asked


@pytest.mark.parametrize("seed", range(3))
def test_a_search_finds_the_known_optimum(seed: int) -> None:
    history, asked = search(seed)
    assert history[-1].ranked[0] == OPTIMUM
    assert len({genome for genome, _ in asked}) < 800 < SPACE.size
    best = [max(generation.merits.values()) for generation in history]
    assert best == sorted(best)
    assert all(count == 1 for (_, budget), count in asked.items() if budget == 4)


def test_a_search_is_a_function_of_its_seed() -> None:
    assert search(3, 4) == search(3, 4)
    assert search(3, 4)[0] != search(4, 4)[0]
    assert search(3, 8)[0][:4] == search(3, 4)[0]


def test_of_twelve_new_members_six_have_the_whole_budget_and_the_elite_costs_nothing() -> None:
    history, asked = search(0, 1)
    assert Counter(budget for _, budget in asked) == {1: 12, 4: 6}
    history, asked = search(0, 2)
    assert set(history[0].ranked[:2]) <= set(history[1].merits)
    new = [genome for genome in history[1].ranked if genome not in history[0].merits]
    assert sum(budget == 4 for _, budget in asked) == 6 + -(-len(new) // 2)
    for generation in history:
        whole = len(generation.merits)
        assert list(generation.ranked[:whole]) == best_first(generation.merits)
        assert list(generation.ranked[whole:]) == best_first(generation.dropped)
