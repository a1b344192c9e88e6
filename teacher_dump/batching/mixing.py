"""Draw what each row is mixed with: partners in its own row group, and weights from a Beta distribution.

Partners come from the same row group, so that whoever reads a row has its partners too. Rows of a row group are
neighbours by length (a shard is sorted by it), so little of a mixture is padding. Row groups that also hold vectors are
small (27 rows of 50 tokens with 768 float16 each), those without hold a whole shard.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shared.dump.manifest import Manifest
from shared.dump.shards import row_group_sizes
from teacher_dump.batching.rows import ShardRows
from teacher_dump.engines.batch import Mixture

# Keeps these draws independent of all others with the same seed.
_STREAM = 1


def mixed(manifest: Manifest, shard: ShardRows) -> ShardRows:
    """The shard's rows with their mixtures, if the manifest has any; these depend on both alone."""
    codec = manifest.mixtures
    if codec is None:
        return shard
    mixtures: list[list[Mixture]] = []
    for size in row_group_sizes(manifest, shard.lengths, [len(row.positions) for row in shard.rows]):
        first = len(mixtures)
        for own in range(size):
            uniforms_D, weights_D = draws_of(
                manifest.options.seed, shard.numbers[first + own], codec.draws, codec.alpha
            )
            partners_D = first + partners_of(own, size, uniforms_D)
            drawn = zip(partners_D.tolist(), weights_D.tolist(), strict=True)
            mixtures.append([Mixture(shard.rows[at], shard.numbers[at], weight) for at, weight in drawn])
    return replace(shard, mixtures=mixtures)


def draws_of(seed: int, row: int, draws: int, alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float16]]:
    """(numbers from [0, 1) that choose partners, weights from Beta(alpha, alpha) as they are stored) of a row."""
    random = np.random.default_rng([seed, row, _STREAM])
    return random.random(draws), random.beta(alpha, alpha, draws).astype(np.float16)


def partners_of(own: int, rows: int, uniforms_D: NDArray[np.float64]) -> NDArray[np.int64]:
    """The indices of a row's partners among the `rows` rows of its group: others, unless it is alone.

    >>> partners_of(1, 3, np.asarray([0.0, 0.4, 0.6])).tolist()
    [0, 0, 2]
    """
    if rows == 1:
        return np.zeros(len(uniforms_D), np.int64)
    others_D = (uniforms_D * (rows - 1)).astype(np.int64)
    return others_D + (others_D >= own)
