"""How long a forward pass takes, measured so that models and runtimes can be compared.

All get the same inputs: the first rows of the data in file order, in batches of exactly the size named, each padded to
its own longest row. They take turns, because machines are noisy; a turn is one pass over all batches, so that every
batch counts equally often for everyone, and nobody finds the cache full of another's weights at each call.
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

# Batch size -> number of batches, so that both sizes see as many lengths as one turn can afford.
LATENCY_BATCHES = {1: 16, 32: 2}
LEAST_TURNS = 5


def latencies(runners: Sequence[tuple[Runtime, Source]], seconds: float) -> list[dict[int, float]]:
    """Batch size -> median milliseconds of a forward pass, for each runtime and the source of its inputs.

    After a turn of warming up, all of them take turns for about `seconds` times their number, and at least five.
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
    """`number` batches of exactly `size` rows each: the source's first rows in order, from the start again where it has
    too few."""
    rows = [(group, row) for group, count in enumerate(source.group_rows) for row in range(count)]
    chosen = np.asarray([rows[at % len(rows)] for at in range(size * number)])
    loaded = {group: source.load(group, []) for group in np.unique(chosen[:, 0]).tolist()}
    return [collate(loaded, part, source) for part in np.split(chosen, number)]
