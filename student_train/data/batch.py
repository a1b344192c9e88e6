"""A batch: some rows as tensors, padded on the right, with the teacher's signals still encoded.

Shapes: B rows, L tokens of the longest, N recorded positions of all rows, M positions of the row that has most,
P losses.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """What a student is given, and where its outputs are compared with what.

    Attributes:
        input_ids, attention_mask: int64 [B, L].
        positions: int64 [N], indices into the flattened [B * L].
        labels: int64 [N], gold labels, -100 where missing; of questions [2 B], see `places`.
        rows: int64 [B], the rows' numbers in their source.
        token_type_ids: int64 [B, L], of pairs only.
        columns: what the codecs decode, by the column's name, as stored.
        places: bool [B, M], of questions only: which of M places a row has a recorded position for. `labels` then say
            for each row which of its positions is the gold start, and which the gold end.
        is_spare: whether another rank has these rows too, so that they count for nothing (training only).
        shares: float32 [P], the batch's share of what the optimizer step counts for each loss (training only).
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    labels: Tensor
    rows: Tensor
    token_type_ids: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)
    places: Tensor | None = None
    is_spare: bool = False
    shares: Tensor | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a model takes, by the name of its argument."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return inputs if self.token_type_ids is None else {**inputs, "token_type_ids": self.token_type_ids}

    @property
    def is_token_BL(self) -> Tensor:
        """Which of the padded tokens are of a row, bool [B, L]."""
        return self.attention_mask.bool()

    @property
    def tokens(self) -> int:
        """Tokens of all rows, padding not counted."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on a device."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which a GPU copies faster."""
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Tensor):
                changed[each.name] = change(value)
        return replace(self, columns={name: change(column) for name, column in self.columns.items()}, **changed)
