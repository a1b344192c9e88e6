"""Pareto fronts: the students for which no other is at least as good and cheaper, or better and as cheap."""

from collections.abc import Sequence
from dataclasses import dataclass

from student_train.sweep.results import Summary

# Speed is the latency of a single row, the time that a user waits.
BATCH = "1"


@dataclass(frozen=True)
class Fronts:
    """The two fronts, as indices into the list of summaries, the cheapest first.

    Attributes:
        by_size: score against the number of parameters.
        by_speed: score against latency.
    """

    by_size: tuple[int, ...]
    by_speed: tuple[int, ...]


def fronts(found: Sequence[Summary]) -> Fronts:
    """Return both fronts of the students, without the baselines."""
    students = {index: one for index, one in enumerate(found) if one.kind != "baseline"}
    return Fronts(
        front({index: (one.parameters, one.merit) for index, one in students.items()}),
        front({index: (one.latency_ms[BATCH], one.merit) for index, one in students.items()}),
    )


def front(points: dict[int, tuple[float, float]]) -> tuple[int, ...]:
    """Return the indices of the points (cost, merit) that no other point dominates, the cheapest first.

    >>> front({0: (1.0, 0.5), 1: (2.0, 0.4), 2: (3.0, 0.9)})
    (0, 2)
    """
    best = None
    kept = []
    for index, (cost, merit) in sorted(points.items(), key=lambda entry: (entry[1][0], -entry[1][1])):
        # Points that are equal stay both.
        if best is None or merit > best[1] or (cost, merit) == best:
            best = (cost, merit)
            kept.append(index)
    return tuple(kept)
