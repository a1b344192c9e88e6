"""The embeddings of rows, pooled from the vectors of their tokens: of a teacher, a student or a loaded model alike.

Shapes: R rows, T tokens of all rows, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.dump.facts import Pooling

# The attribute in which a model keeps its pooling while it is in memory; in a folder it is in files of its own (see
# `sentence_folder`).
_ATTRIBUTE = "lectern_pooling"


def pooled(states_TD: Tensor, lengths: Sequence[int] | Tensor, pooling: Pooling) -> Tensor:
    """Return the embeddings [R, D] of rows from the last hidden states of their tokens, in float32 or wider.

    Args:
        lengths: tokens of each row; rows lie one after the other. The embedding of a row without tokens is zero.
    """
    states_TD = states_TD.to(torch.promote_types(states_TD.dtype, torch.float32))
    lengths_R = torch.as_tensor(lengths, device=states_TD.device)
    rows_RD = _one_of_each_row(states_TD, lengths_R, pooling.mode)
    return nn.functional.normalize(rows_RD, dim=-1) if pooling.normalized else rows_RD


def _one_of_each_row(states_TD: Tensor, lengths_R: Tensor, mode: str) -> Tensor:
    nothing_RD = states_TD.new_zeros(len(lengths_R), states_TD.shape[1])
    if not len(states_TD):
        return nothing_RD
    ends_R = lengths_R.cumsum(0)
    if mode in ("cls", "last"):
        at_R = ends_R - lengths_R if mode == "cls" else ends_R - 1
        found_RD = states_TD[at_R.clamp(0, len(states_TD) - 1)]
        return torch.where(lengths_R[:, None] > 0, found_RD, nothing_RD)
    row_of_T = torch.arange(len(lengths_R), device=states_TD.device).repeat_interleave(lengths_R)
    if mode == "max":
        return nothing_RD.scatter_reduce(
            0, row_of_T[:, None].expand_as(states_TD), states_TD, "amax", include_self=False
        )
    return nothing_RD.index_add(0, row_of_T, states_TD) / lengths_R.clamp(min=1)[:, None]


def pooling_of(model: nn.Module) -> Pooling | None:
    """Return the pooling of a model whose rows have embeddings; None for other models."""
    found = getattr(model, _ATTRIBUTE, None)
    return found if isinstance(found, Pooling) else None


def set_pooling(model: nn.Module, pooling: Pooling) -> None:
    """Say how the embeddings of a model's rows are made."""
    object.__setattr__(model, _ATTRIBUTE, pooling)
