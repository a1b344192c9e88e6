"""Packed batches: rows one after the other instead of padded, and attention that keeps them apart.

Rows are sorted by length, so rows of the same length follow one another. Such a run is an ordinary batch without
padding: attention takes the packed tokens run by run, with the mask that the model makes for a single row of this
length. Usually this is no mask at all, which the fast kernels need.

Shapes: T tokens of all rows, H heads (keys and values may have fewer), D their width; within a run n rows of L tokens.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from shared.text.tokenized import TokenizedRow

# Tensors other than masks that attention functions may get for packed rows: positions, which they no longer use, and
# sinks, which have one number per head and none per token.
_HARMLESS = ("position_ids", "s_aux")


@dataclass(frozen=True)
class Run:
    """`rows` rows of `length` tokens each, which begin at token `start` of the packed batch."""

    start: int
    rows: int
    length: int

    @property
    def stop(self) -> int:
        """The index after its last token."""
        return self.start + self.rows * self.length


@dataclass(frozen=True)
class RunMasks:
    """The replacement of the attention mask: for each length, the mask [1, 1, L, L] of one row, or None for no mask."""

    by_length: Mapping[int, Tensor | None]


def runs_of(lengths: Sequence[int]) -> tuple[Run, ...]:
    """The runs of consecutive rows of equal length. Rows without tokens are left out.

    >>> runs_of([5, 3, 3])
    (Run(start=0, rows=1, length=5), Run(start=5, rows=2, length=3))
    """
    runs: list[Run] = []
    for length, group in groupby(length for length in lengths if length):
        runs.append(Run(runs[-1].stop if runs else 0, len(list(group)), length))
    return tuple(runs)


def packed_inputs(rows: Sequence[TokenizedRow], first_position: int | None, device: torch.device) -> dict[str, Tensor]:
    """The inputs of rows as one packed batch.

    Args:
        first_position: the position id of a row's first token (`Attention.first_position`); None for models that take
            no position ids.

    Returns:
        input_ids, attention_mask (of ones: without it transformers would detect rows itself, and make a [T, T] mask),
        position_ids unless `first_position` is None, and token_type_ids for pairs; each [1, T].
    """
    lengths = [len(row.input_ids) for row in rows]
    arrays = {"input_ids": np.concatenate([row.input_ids for row in rows])}
    arrays["attention_mask"] = np.ones_like(arrays["input_ids"])
    if first_position is not None:
        arrays["position_ids"] = np.concatenate([np.arange(length) for length in lengths]) + first_position
    types = [row.token_type_ids for row in rows if row.token_type_ids is not None]
    if types:
        arrays["token_type_ids"] = np.concatenate(types)
    return {name: torch.from_numpy(array.astype(np.int64))[None].to(device) for name, array in arrays.items()}


def masks_of_runs(make_mask: Callable[..., Tensor | None], runs: Sequence[Run], arguments: dict[str, Any]) -> RunMasks:
    """The mask of one row of each length, by the function (and its arguments) that makes the mask of a batch.

    Raises:
        ValueError: if the model was given no attention mask, because transformers then detects packed rows itself.
    """
    if arguments["attention_mask"] is None:
        raise ValueError("packed rows need an attention_mask of ones; packed_inputs makes one.")
    row = {**arguments, "attention_mask": None}
    return RunMasks({run.length: make_mask(**{**row, "q_length": run.length, "kv_length": run.length}) for run in runs})


def attend_packed(
    attend: Callable[..., Any],
    varlen: bool,
    runs: Sequence[Run],
    module: nn.Module,
    query_1HTD: Tensor,
    key_1HTD: Tensor,
    value_1HTD: Tensor,
    masks: RunMasks | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention output of packed rows, [1, T, H, D], by a function for padded batches.

    Args:
        attend: one of transformers' attention functions.
        varlen: whether `attend_varlen`, which takes all rows at once, may replace `attend` (`varlen_serves`).
        masks: None if the model makes no mask, and `attend` applies the causal mask itself.
        options: the other arguments of `attend`.

    Raises:
        ValueError: for an argument with numbers for tokens or pairs of tokens, which cannot be cut by row.
    """
    tokens = runs[-1].stop if runs else 0
    if not all(tensor.shape[0] == 1 and tensor.shape[2] == tokens for tensor in (query_1HTD, key_1HTD, value_1HTD)):
        raise ValueError(f"rows of {tokens} tokens are packed, but the model attends over {tuple(key_1HTD.shape)}.")
    if masks is not None and not isinstance(masks, RunMasks):
        raise ValueError(f"{type(module).__name__} makes its own attention mask, which cannot be cut by row.")
    unknown = [name for name, value in options.items() if isinstance(value, Tensor) and name not in _HARMLESS]
    if unknown:
        raise ValueError(f"{type(module).__name__} attends with {', '.join(unknown)}, which cannot be cut by row.")
    mask_of = masks.by_length if masks is not None else {run.length: None for run in runs}
    if varlen and all(mask is None for mask in mask_of.values()):
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        return attend_varlen(runs, query_1HTD, key_1HTD, value_1HTD, causal, options.get("scaling")), None

    def rows_of(tensor_1HTD: Tensor, run: Run) -> Tensor:
        return tensor_1HTD[0, :, run.start : run.stop].unflatten(1, (run.rows, run.length)).transpose(0, 1)

    parts = []
    for run in runs:
        query_nHLD, key_nHLD, value_nHLD = (rows_of(each, run) for each in (query_1HTD, key_1HTD, value_1HTD))
        output_nLHD, _ = attend(module, query_nHLD, key_nHLD, value_nHLD, mask_of[run.length], **options)
        parts.append(output_nLHD.flatten(0, 1))
    return torch.cat(parts)[None], None


def varlen_serves(query_1HTD: Tensor, value_1HTD: Tensor) -> bool:
    """Whether PyTorch's kernel for rows of varying length supports these tensors.

    These are the conditions of FlashAttention, and a PyTorch whose function supports keys with fewer heads, as 2.12
    does.
    """
    width = query_1HTD.shape[-1]
    return (
        query_1HTD.is_cuda
        and query_1HTD.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(query_1HTD.device) >= (8, 0)
        and width == value_1HTD.shape[-1]
        and width <= 256
        and width % 8 == 0
        and "enable_gqa" in inspect.signature(varlen_attn).parameters
    )


def attend_varlen(
    runs: Sequence[Run], query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, causal: bool, scaling: float | None
) -> Tensor:
    """The attention output of all rows, [1, T, H, D], computed by one kernel."""
    ends = _ends_of_rows(tuple(runs), query_1HTD.device)
    longest = max(run.length for run in runs)
    query_THD, key_THD, value_THD = (each[0].transpose(0, 1) for each in (query_1HTD, key_1HTD, value_1HTD))
    output_THD = varlen_attn(
        query_THD,
        key_THD,
        value_THD,
        ends,
        ends,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=query_THD.shape[1] != key_THD.shape[1],
    )
    assert isinstance(output_THD, Tensor)
    return output_THD[None]


@lru_cache(maxsize=1)
def _ends_of_rows(runs: tuple[Run, ...], device: torch.device) -> Tensor:
    """0 and the end of each row, int32. Cached, because every layer needs the same."""
    lengths = np.concatenate([[0]] + [np.full(run.rows, run.length) for run in runs])
    return torch.from_numpy(lengths.cumsum().astype(np.int32)).to(device)
