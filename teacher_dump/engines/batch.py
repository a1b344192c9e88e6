"""Batches: some rows as tensors, the input of a teacher's forward pass.

Shapes: B rows, L tokens of the longest, T tokens of all rows, N recorded positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.dump.signals import Per
from shared.models.mixing import MixedInputs
from shared.text.tokenized import TokenizedRow

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Mixture:
    """A row to mix another row with: `number` is its number in the corpus, and `weight` that of the other row."""

    partner: TokenizedRow
    number: int
    weight: float


@dataclass(frozen=True)
class MixedRows:
    """Some mixtures of a batch as one forward pass: their places, int64 [M], in the batch's [B * draws], and inputs."""

    places: Int64
    inputs: MixedInputs


@dataclass(frozen=True)
class Batch:
    """Rows as tensors for the teacher.

    Attributes:
        rows: the tokenized rows, in the shard's order.
        numbers: the rows' numbers in the corpus.
        inputs: padded on the right, input_ids and attention_mask [B, L]; or packed, input_ids and position_ids [1, T],
            one row after the other. Also token_type_ids for pairs.
        packed: whether the inputs are packed.
        positions: the indices of the recorded positions in the model's flattened outputs, int64 [N], if the layout
            gives them; None if the recorded positions are tokens of the inputs.
        mixtures: what each row is mixed with, the same number of draws for each; empty if nothing is mixed.
        mixed: the inputs for these mixtures.
    """

    rows: Sequence[TokenizedRow]
    numbers: Sequence[int]
    inputs: dict[str, Tensor]
    packed: bool = False
    positions: Int64 | None = None
    mixtures: Sequence[Sequence[Mixture]] = ()
    mixed: tuple[MixedRows, ...] = ()

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each row."""
        return [len(row.input_ids) for row in self.rows]

    @property
    def tokens(self) -> int:
        """The number of tokens, without padding."""
        return sum(self.lengths)

    def token_index(self) -> Int64:
        """The indices of the rows' tokens in the flattened inputs, int64 [T]."""
        if self.packed:
            return np.arange(self.tokens)
        return np.flatnonzero(np.arange(self.width) < np.array(self.lengths)[:, None])

    def position_index(self) -> Int64:
        """The indices of the recorded positions in the model's flattened outputs, int64 [N]."""
        if self.positions is not None:
            return self.positions
        starts_B = np.cumsum([0, *self.lengths])[:-1] if self.packed else np.arange(len(self.rows)) * self.width
        return np.concatenate([row.positions for row in self.rows]) + np.repeat(starts_B, self._recorded)

    def owners(self, per: Per) -> Int64:
        """The row number of each token [T], of each recorded position [N], or of each row [B]."""
        counts = {"token": self.lengths, "position": self._recorded, "row": [1] * len(self.rows)}[per]
        return np.repeat(np.asarray(self.numbers, np.int64), counts)

    @property
    def _recorded(self) -> list[int]:
        return [len(row.positions) for row in self.rows]

    @property
    def width(self) -> int:
        """The number of tokens of the longest row; in a packed batch, of all rows."""
        return self.inputs["input_ids"].shape[1]

    def pinned(self) -> "Batch":
        """The batch in pinned memory, from which a CUDA device copies without the host."""
        return self._with_each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device. The host does not wait for a copy from pinned memory."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        inputs = {name: change(tensor) for name, tensor in self.inputs.items()}
        return replace(self, inputs=inputs, mixed=tuple(replace(m, inputs=m.inputs.each(change)) for m in self.mixed))


def pad(rows: Sequence[TokenizedRow], numbers: Sequence[int], pad_token_id: int) -> Batch:
    """Put rows into one padded batch on the host. Padding is on the right and masked out."""
    lengths_B = np.array([len(row.input_ids) for row in rows])
    is_token_BL = np.arange(max(1, lengths_B.max())) < lengths_B[:, None]
    input_ids_BL = np.full(is_token_BL.shape, pad_token_id, np.int64)
    input_ids_BL[is_token_BL] = np.concatenate([row.input_ids for row in rows])
    arrays = {"input_ids": input_ids_BL, "attention_mask": is_token_BL.astype(np.int64)}
    types = [row.token_type_ids for row in rows if row.token_type_ids is not None]
    if types:
        arrays["token_type_ids"] = np.zeros(is_token_BL.shape, np.int64)
        arrays["token_type_ids"][is_token_BL] = np.concatenate(types)
    return Batch(rows, numbers, {name: torch.from_numpy(array) for name, array in arrays.items()})
