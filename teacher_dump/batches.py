"""Batches of similar length by token budget, in an order that the shard's rows alone decide.

Shapes: B rows, L the longest of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.text.tasks import TokenizedRow


@dataclass(frozen=True)
class Batch:
    """Padded rows on the teacher's device.

    Attributes:
        rows: the tokenized rows, in the shard's order.
        inputs: input_ids_BL, attention_mask_BL and, for pairs, token_type_ids_BL.
    """

    rows: Sequence[TokenizedRow]
    inputs: dict[str, Tensor]

    @property
    def tokens(self) -> int:
        """Tokens, padding not counted."""
        return sum(len(row.input_ids) for row in self.rows)


def shard_order(rows: Sequence[TokenizedRow]) -> list[int]:
    """Longest first (so that memory runs out at once or not at all), then by row number."""
    return sorted(range(len(rows)), key=lambda index: (-len(rows[index].input_ids), index))


def cut_batches(lengths: Sequence[int], batch_tokens: int, most_rows: int | None = None) -> Iterator[slice]:
    """Slices of rows, given in falling order of length, that hold at most `batch_tokens` tokens with their padding."""
    start = 0
    while start < len(lengths):
        count = max(1, batch_tokens // max(1, lengths[start]))
        stop = min(start + min(count, most_rows or count), len(lengths))
        yield slice(start, stop)
        start = stop


def pad(rows: Sequence[TokenizedRow], pad_token_id: int, device: torch.device) -> Batch:
    """Rows as one padded batch. Padding is on the right and masked out."""
    longest = max(1, max(len(row.input_ids) for row in rows))
    input_ids = np.full((len(rows), longest), pad_token_id, np.int64)
    attention_mask = np.zeros((len(rows), longest), np.int64)
    token_types = np.zeros((len(rows), longest), np.int64)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        input_ids[index, :length] = row.input_ids
        attention_mask[index, :length] = 1
        if row.token_type_ids is not None:
            token_types[index, :length] = row.token_type_ids
    arrays = {"input_ids": input_ids, "attention_mask": attention_mask}
    if rows[0].token_type_ids is not None:
        arrays["token_type_ids"] = token_types
    return Batch(rows, {name: torch.from_numpy(array).to(device) for name, array in arrays.items()})
