"""A batch: some rows as tensors, padded on the right, with the teacher's signals still encoded.

Shapes: B rows, L tokens of the longest, N recorded positions of all rows, S distributions, P losses.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from shared.dump.layouts import BatchIndex
from shared.models.mixing import MixedInputs


@dataclass(frozen=True, eq=False)
class Mixed:
    """Some of a batch's rows, each mixed with another row of the source as the teacher read them (M mixtures).

    Attributes:
        rows: int64 [M], the rows' indices in the batch.
        draws: int64 [M], which of the row's stored draws it is.
        labels: int64 [M, 2], the gold labels of the row and of its partner, -100 if missing.
        inputs: the inputs of a model.
    """

    rows: Tensor
    draws: Tensor
    labels: Tensor
    inputs: MixedInputs


@dataclass(frozen=True, eq=False)
class Batch:
    """The inputs of a student, and the targets with which its outputs are compared.

    Attributes:
        input_ids, attention_mask: int64 [B, L].
        index: the recorded positions, and the gold labels there.
        rows: int64 [B], the rows' numbers in their source.
        token_type_ids: int64 [B, L], for pairs only.
        columns: column name -> the stored values, which the codecs decode.
        mixed: rows mixed with others; None if the columns of mixtures were not read, or no row has a partner.
        is_spare: whether another rank has these rows too, so that they have no weight (training only).
        shares: float32 [P], the batch's share of the optimizer step, for each loss (training only).
    """

    input_ids: Tensor
    attention_mask: Tensor
    index: BatchIndex
    rows: Tensor
    token_type_ids: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)
    mixed: Mixed | None = None
    is_spare: bool = False
    shares: Tensor | None = None

    @property
    def positions(self) -> Tensor:
        """The recorded positions, int64 [N]: indices into the flattened [B * L]."""
        return self.index.positions

    @property
    def labels(self) -> Tensor:
        """The gold label of each distribution, int64 [S], -100 if missing."""
        return self.index.labels

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The arguments of a model, by name."""
        types = {} if self.token_type_ids is None else {"token_type_ids": self.token_type_ids}
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **types, **self.index.inputs}

    @property
    def is_token_BL(self) -> Tensor:
        """Whether each token belongs to a row and is not padding, bool [B, L]."""
        return self.attention_mask.bool()

    @property
    def tokens(self) -> int:
        """The number of tokens of all rows, without padding."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on a device."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory, from which a GPU copies faster."""
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return _with_each(self, change)


def _with_each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with `change` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _with_each(each, change) for name, each in value.items()}
    if isinstance(value, Batch | BatchIndex | Mixed | MixedInputs):
        return replace(value, **{each.name: _with_each(getattr(value, each.name), change) for each in fields(value)})
    return value
