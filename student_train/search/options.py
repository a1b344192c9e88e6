"""The options of a search over layer maps."""

from dataclasses import dataclass
from typing import Annotated

from annotated_doc import Doc
from annotated_types import Ge, Le

from shared.numbers import MOST_SEED
from shared.options import MOST

MOST_GENERATIONS = 10_000
MOST_MAPS = 1000


@dataclass(frozen=True)
class SearchOptions:
    """How wide and how long a search is."""

    population: Annotated[int, Ge(2), Le(MOST_MAPS), Doc("Maps of a generation.")] = 12
    generations: Annotated[int, Ge(1), Le(MOST_GENERATIONS), Doc("Generations.")] = 8
    steps: Annotated[
        int | None,
        Ge(1),
        Le(MOST),
        Doc(
            "Optimizer steps of a candidate, the proxy budget; each new map has a quarter of it first, and the better "
            "half of a generation all of it. By default a tenth of the recipe's steps."
        ),
    ] = None
    held_out: Annotated[
        int,
        Ge(2),
        Le(MOST),
        Doc("About so many rows of the dump are held out to score candidates on, but at most a fifth of all."),
    ] = 1000
    random_maps: Annotated[int, Ge(0), Le(MOST_MAPS), Doc("Random maps among the controls.")] = 3
    confirm_seeds: Annotated[
        int,
        Ge(0),
        Le(MOST_MAPS),
        Doc("So many other seeds with which the best 3 maps and the controls are trained again: do maps differ more?"),
    ] = 3
    seed: Annotated[
        int, Ge(0), Le(MOST_SEED), Doc("Seed of the search. That of all candidates' training is training.seed.")
    ] = 0
    jobs: Annotated[
        int | None,
        Ge(1),
        Le(MOST),
        Doc("Candidates trained at the same time; by default one per CUDA device or CPU core."),
    ] = None
