"""Attention from its formula, and what modules are given while a model runs."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from shared.models.attention import Captured


def heads(projected_BLD: Tensor, width: int) -> Tensor:
    return projected_BLD.unflatten(-1, (-1, width)).transpose(1, 2)


def attended(query_BHLD: Tensor, key_BHLD: Tensor, value_BHLD: Tensor, causal: bool) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V, with heads side by side: [B, L, H * D]."""
    groups = query_BHLD.shape[1] // key_BHLD.shape[1]
    key_BHLD, value_BHLD = (each.repeat_interleave(groups, dim=1) for each in (key_BHLD, value_BHLD))
    scores_BHLL = query_BHLD @ key_BHLD.transpose(-1, -2) / math.sqrt(query_BHLD.shape[-1])
    if causal:
        length = scores_BHLL.shape[-1]
        scores_BHLL = scores_BHLL.masked_fill(~torch.ones(length, length).bool().tril(), -torch.inf)
    return (scores_BHLL.softmax(-1) @ value_BHLD).transpose(1, 2).flatten(2)


def parts_of(captured: Captured) -> tuple[Tensor, ...]:
    """Queries, keys and values."""
    assert list(captured.parts_BHLD) == ["queries", "keys", "values"]
    return tuple(captured.parts_BHLD.values())


def seen_by(module: nn.Module, run: Callable[[], Any], output: bool = False) -> Any:
    """What goes into a module (or comes out of it) while `run` runs."""
    seen: list[Any] = []
    hook = module.register_forward_hook(
        lambda _, arguments, named, result: seen.append(result if output else (arguments, named)), with_kwargs=True
    )
    run()
    hook.remove()
    return seen[0]
