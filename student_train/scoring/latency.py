"""Latencies of forward passes, measured so that models and runtimes can be compared.

All runtimes get the same inputs: the first rows of the data in file order, in batches of exactly the given size, each
padded to its own longest row. They run in turns, because the speed of a machine varies over time. A turn is one pass
over all batches, so that every batch counts equally often for each runtime, and the cache does not hold another
model's weights at each call.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from student_train.data.batch import Batch
from student_train.data.batches import collate
from student_train.data.sources import Source
from student_train.scoring.runtimes import Runtime

# Batch size -> number of batches: as many different lengths as one turn has time for.
LATENCY_BATCHES = {1: 16, 32: 2}
LEAST_TURNS = 5


def latencies(runners: Sequence[tuple[Runtime, Source]], seconds: float) -> list[dict[int, float]]:
    """Return, for each runtime and the source of its inputs, batch size -> median milliseconds of a forward pass.

    After one turn to warm up, the runtimes take turns for about `seconds` times their number, at least five turns each.
    """
    medians: list[dict[int, float]] = [{} for _ in runners]
    for size, number in LATENCY_BATCHES.items():
        inputs = [
            [runtime.inputs(batch.inputs) for batch in first_batches(source, size, number)]
            for runtime, source in runners
        ]
        for (runtime, _), mine in zip(runners, inputs, strict=True):
            _turn(runtime, mine)
        times: list[list[float]] = [[] for _ in runners]
        start, turns = time.perf_counter(), 0
        while turns < LEAST_TURNS or time.perf_counter() - start < seconds * len(runners):
            for (runtime, _), mine, own_times in zip(runners, inputs, times, strict=True):
                own_times += _turn(runtime, mine)
            turns += 1
        for median, own_times in zip(medians, times, strict=True):
            median[size] = statistics.median(own_times)
    return medians


def _turn(runtime: Runtime, inputs: Sequence[Any]) -> list[float]:
    times = []
    for one in inputs:
        before = time.perf_counter()
        runtime.run(one)
        times.append(1000 * (time.perf_counter() - before))
    return times


def first_batches(source: Source, size: int, number: int) -> list[Batch]:
    """Return `number` batches of exactly `size` rows each: the first rows of the source in order, repeated from the
    start if there are too few."""
    rows = [(group, row) for group, count in enumerate(source.group_rows) for row in range(count)]
    chosen = np.asarray([rows[at % len(rows)] for at in range(size * number)])
    loaded = {group: source.load(group, []) for group in np.unique(chosen[:, 0]).tolist()}
    return [collate(loaded, part, source) for part in np.split(chosen, number)]
