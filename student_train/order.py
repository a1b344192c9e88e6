"""The order of training rows: a pure function of (seed, epoch) and the row groups' sizes.

Row groups are permuted, read `WINDOW_GROUPS` at a time, and the rows of a window are shuffled and cut into batches.
Rows that do not fill a batch wait for the next window, so that an epoch has exactly ceil(rows / batch size) batches.
Nothing here looks into a row, so any step of any epoch is found without reading what came before it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# A window is what a trainer holds in memory: so many row groups of about 2 MiB, and those of rows that still wait. It
# also bounds how far a row is shuffled from its neighbours in the dump; the row groups are permuted over all of it.
WINDOW_GROUPS = 8
# Batches that are made of rows of similar length together: enough to leave little padding, few enough to stay random.
# A quarter of the window at most, or small data would meet in the same batches epoch after epoch.
BATCHES_SORTED_TOGETHER = 32

# One (row group, row within it) for each row, [n, 2].
References = NDArray[np.int64]


def batches_per_epoch(group_rows: Sequence[int], batch_size: int) -> int:
    """How many batches one epoch has; the last may be short."""
    return -(-sum(group_rows) // batch_size)


def windows(group_rows: Sequence[int], batch_size: int, seed: int, epoch: int) -> Iterator[References]:
    """The epoch's rows in windows whose sizes are multiples of `batch_size` (the last one takes what is left)."""
    order = np.random.default_rng([seed, epoch]).permutation(len(group_rows))
    waiting = np.zeros((0, 2), np.int64)
    for number, start in enumerate(range(0, len(order), WINDOW_GROUPS)):
        groups = order[start : start + WINDOW_GROUPS]
        fresh = np.concatenate(
            [np.stack([np.full(group_rows[group], group), np.arange(group_rows[group])], axis=1) for group in groups]
        )
        np.random.default_rng([seed, epoch, 1, number]).shuffle(fresh)
        rows = np.concatenate([waiting, fresh])
        is_last = start + WINDOW_GROUPS >= len(order)
        full = len(rows) if is_last else len(rows) // batch_size * batch_size
        waiting = rows[full:]
        if full:
            yield rows[:full]


def cut_into_batches(
    rows: References, lengths: NDArray[np.int64], batch_size: int, seed: Sequence[int]
) -> list[References]:
    """A window's rows as batches of similar length, the batches in random order (a short one, if any, stays last)."""
    batches: list[References] = []
    stride = batch_size * max(1, min(BATCHES_SORTED_TOGETHER, len(rows) // batch_size // 4))
    for start in range(0, len(rows), stride):
        by_length = start + np.argsort(lengths[start : start + stride], kind="stable")
        batches += [rows[by_length[at : at + batch_size]] for at in range(0, len(by_length), batch_size)]
    whole = [batch for batch in batches if len(batch) == batch_size]
    short = [batch for batch in batches if len(batch) < batch_size]
    return [whole[index] for index in np.random.default_rng(seed).permutation(len(whole))] + short
