"""Training batches from rows of token ids, for benchmarks that train students on tensors in memory.

Shapes: B rows, L tokens of the longest.
"""

import numpy as np
import torch
from torch import Tensor


def order_of(rows: list[list[int]], passes: int, batch_rows: int, seed: int) -> list[list[int]]:
    """Batches of row numbers for a number of passes over the rows, in an order drawn from the seed.

    Rows of a batch have similar lengths.
    """
    draw = np.random.default_rng(seed)
    batches: list[list[int]] = []
    for _ in range(passes):
        by_length = sorted(draw.permutation(len(rows)).tolist(), key=lambda row: len(rows[row]))
        cut = [by_length[start : start + batch_rows] for start in range(0, len(rows), batch_rows)]
        batches += [cut[index] for index in draw.permutation(len(cut))]
    return batches


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids as (ids_BL, mask_BL), padded on the right."""
    ids_BL = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask_BL = torch.zeros_like(ids_BL)
    for index, row in enumerate(rows):
        ids_BL[index, : len(row)], mask_BL[index, : len(row)] = torch.tensor(row), 1
    return ids_BL, mask_BL
