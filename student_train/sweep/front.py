"""Which students are on the Pareto front: no other is at least as good and cheaper, or better and as cheap."""

from collections.abc import Sequence
from dataclasses import dataclass

from student_train.sweep.results import Summary

# Latency is that of one row, what a user waits for.
BATCH = "1"


@dataclass(frozen=True)
class Fronts:
    """Places in the list of summaries, the cheapest first: of score against parameters, of score against latency."""

    by_size: tuple[int, ...]
    by_speed: tuple[int, ...]


def fronts(found: Sequence[Summary]) -> Fronts:
    """Both fronts of the students; baselines from elsewhere are not asked."""
    students = {index: one for index, one in enumerate(found) if one.kind != "baseline"}
    return Fronts(
        front({index: (one.parameters, one.merit) for index, one in students.items()}),
        front({index: (one.latency_ms[BATCH], one.merit) for index, one in students.items()}),
    )


def front(points: dict[int, tuple[float, float]]) -> tuple[int, ...]:
    """Of index -> (cost, merit) those that no other point dominates, the cheapest first.

    >>> front({0: (1.0, 0.5), 1: (2.0, 0.4), 2: (3.0, 0.9)})
    (0, 2)
    """
    best = None
    kept = []
    for index, (cost, merit) in sorted(points.items(), key=lambda entry: (entry[1][0], -entry[1][1])):
        # Of equal ones both stay.
        if best is None or merit > best[1] or (cost, merit) == best:
            best = (cost, merit)
            kept.append(index)
    return tuple(kept)
