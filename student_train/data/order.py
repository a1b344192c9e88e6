"""The order of training rows: a pure function of (seed, epoch) and of the sizes of the row groups.

Row groups are permuted and cut into windows of a given number of bytes. The rows of a window are shuffled and cut into
batches of similar length. A window has ceil(rows / batch size) or ceil(tokens / tokens per batch) batches, whose sizes
differ by at most one row. So the number of batches of a window or an epoch is known without reading rows, and any batch
of any epoch is found without reading the batches before it.

Row groups of a dump have few rows (its shards are sorted by length), so a few groups of similar length are placed next
to each other: their rows fill batches with little padding even if a window is small.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from shared.dump.reader import GroupSizes

# Bytes of a window, whose rows are shuffled together. A trainer has two windows in memory: one to read, one to fill.
WINDOW_BYTES = 32 * 2**20
# The fewest batches of a window, which may need more bytes: with fewer batches, rows of a batch differ more in length.
WINDOW_BATCHES = 16
# Number of row groups of similar length next to each other, or as many as have this number of batches. It is small, so
# that a window has short rows and long ones.
COMPANIONS = 4
COMPANION_BATCHES = 4
# Random relative change of lengths before sorting, so that other rows and groups come together in each epoch. It costs
# as much padding.
_BLUR = 0.02
# Number of parts into which the rows are divided if one window has all: sorted as one, the batches of all epochs would
# have the same rows.
_PARTS = 4

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Window:
    """Row groups whose rows are shuffled together.

    Attributes:
        groups: the numbers of the row groups, in the order in which they are read.
        first, stop: the range of its rows, counted over all of `groups` (a group may begin in the window before).
        batches: its number of batches.
    """

    epoch: int
    number: int
    groups: Int64
    first: int
    stop: int
    batches: int


class Order:
    """The rows of each batch.

    Args:
        batch_size, batch_tokens: rows or tokens (without padding) of a global batch; one of the two is given. A batch
            has at most `batch_size` rows, or at most two rows more than fit into `batch_tokens`.
    """

    def __init__(
        self, sizes: GroupSizes, seed: int, batch_size: int | None = None, batch_tokens: int | None = None
    ) -> None:
        if (batch_size is None) == (batch_tokens is None):
            raise ValueError(f"batch_size is {batch_size} and batch_tokens {batch_tokens}; give one of the two")
        self._sizes, self._seed, self._batch_size = sizes, seed, batch_size
        self._budget = batch_size or batch_tokens or 0
        self._weights = sizes.rows if batch_size else sizes.tokens

    def batches(self, epochs: float) -> float:
        """The number of batches in this number of epochs."""
        whole = int(epochs)
        each = [self._batches(epoch) for epoch in range(whole + (epochs > whole))]
        return sum(each[:whole]) + (epochs - whole) * sum(each[whole:])

    def seek(self, batch: int) -> tuple[int, int, int]:
        """(epoch, window of the epoch, batch of the window) of batch number `batch`, counted from 0 over all epochs."""
        for epoch in count():
            within = batch
            for window in self.windows(epoch):
                if within < window.batches:
                    return epoch, window.number, within
                within -= window.batches
            batch = within
        raise AssertionError("epochs do not end")

    def windows(self, epoch: int) -> list[Window]:
        """The windows of an epoch."""
        groups = self._arranged(epoch)
        # Sums before each group, and after the last.
        rows, weights, sizes = (
            np.concatenate([[0], np.cumsum(each[groups])])
            for each in (self._sizes.rows, self._weights, self._sizes.bytes)
        )
        least = WINDOW_BATCHES * self._budget
        found: list[Window] = []
        first = 0  # row, counted over all groups in their order
        while first < rows[-1]:
            start = int(np.searchsorted(rows, first, side="right")) - 1
            stop = int(np.searchsorted(sizes, sizes[start] + WINDOW_BYTES, side="right")) - 1
            weight_before = first if self._batch_size else int(weights[start])
            stop = max(stop, start + 1, int(np.searchsorted(weights, weight_before + least)))
            # The last window also takes the remaining groups if they are too few for a window.
            if stop >= len(groups) or weights[-1] - weights[stop] < least:
                stop = len(groups)
            end = int(rows[stop])
            if self._batch_size and stop < len(groups):
                end -= end % self._batch_size
            weight = (end if self._batch_size else int(weights[stop])) - weight_before
            found.append(
                Window(
                    epoch=epoch,
                    number=len(found),
                    groups=groups[start:stop],
                    first=first - int(rows[start]),
                    stop=end - int(rows[start]),
                    batches=min(end - first, -(-weight // self._budget)),
                )
            )
            first = end
        return found

    def cut(self, window: Window, lengths: Int64) -> list[Int64]:
        """The batches of a window, as numbers of rows counted over all of its groups; `lengths` are of these rows."""
        random = np.random.default_rng([self._seed, window.epoch, 1, window.number])
        rows = window.first + random.permutation(window.stop - window.first)
        batches: list[Int64] = []
        parts = min(_PARTS, window.batches) if len(window.groups) == len(self._sizes.rows) else 1
        firsts = np.arange(parts + 1) * window.batches // parts
        bounds = _even(self._row_weights(lengths[rows]), window.batches)[firsts]
        for part, share in zip(_between(rows, bounds), np.diff(firsts), strict=True):
            seeming = lengths[part] * random.uniform(1 - _BLUR, 1 + _BLUR, len(part))
            by_length = part[np.argsort(seeming)]
            batches += _between(by_length, _even(self._row_weights(lengths[by_length]), int(share)))
        return [batches[index] for index in random.permutation(len(batches))]

    def _batches(self, epoch: int) -> int:
        return sum(window.batches for window in self.windows(epoch))

    def _arranged(self, epoch: int) -> Int64:
        """All groups in the order of an epoch: companions of similar length together, otherwise random."""
        random = np.random.default_rng([self._seed, epoch])
        groups = len(self._sizes.rows)
        lengths = self._sizes.tokens / np.maximum(self._sizes.rows, 1)
        by_length = np.argsort(lengths * random.uniform(1 - _BLUR, 1 + _BLUR, groups))
        companions = max(COMPANIONS, round(COMPANION_BATCHES * self._budget * groups / max(1, self._weights.sum())))
        company = (np.arange(groups) + random.integers(companions)) // companions
        place = random.permutation(company[-1] + 1)
        return by_length[np.argsort(place[company], kind="stable")]

    def _row_weights(self, lengths: Int64) -> Int64:
        return np.ones_like(lengths) if self._batch_size else np.maximum(lengths, 1)


def _even(weights: Int64, parts: int) -> Int64:
    """Bounds [parts + 1] that cut rows into parts of about the same weight; no part is empty."""
    ends = np.cumsum(weights)
    bounds = np.searchsorted(ends * parts, np.arange(parts + 1) * ends[-1], side="right")
    steps = np.arange(parts + 1)
    bounds = np.maximum.accumulate(bounds - steps) + steps
    return np.minimum(bounds, len(weights) - parts + steps)


def _between(rows: Int64, bounds: Int64) -> Iterator[Int64]:
    return (rows[start:stop] for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
