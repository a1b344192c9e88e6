"""What the modules of one layer take and give while a teacher runs over made-up rows, and comparisons of that.

Shapes: B rows, L tokens, N = B * L, D width of the layer's input, W width of a part, K outputs of a module, H heads.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shared.models.attention import Captured
from teacher_dump.engines.transformers.teacher import Teacher

# Relative error of a vector, by its norm: that of sums in float32, or of a few roundings in half precision.
FLOAT_ERROR, ROUNDINGS = 1e-4, 4
# Factors are measured before they are known; an error of this size tells other columns apart from the right ones.
ROUGH_ERROR = 0.01
# Columns that are compared with those of a module at once.
COLUMNS_AT_ONCE = 512
# Spreads the tokens of a probe over the vocabulary: the first ids are often special or were never trained, so that all
# their states are alike.
_GOLDEN = 0.6180339887


class NotFoundError(Exception):
    """Queries, keys or values are made in a way that is not known here; the text says what was not found."""


@dataclass(frozen=True, eq=False)
class Call:
    """A module that ran, its first argument and its output."""

    module: nn.Module
    given: Tensor
    output: Tensor


@dataclass
class Seen:
    """What the modules of a layer took and gave before its attention function was called.

    Attributes:
        calls: in their order.
        inputs_BLD: the layer's input.
        parts_NW: queries, keys and values, heads side by side.
    """

    calls: list[Call] = field(default_factory=list)
    inputs_BLD: Tensor = field(default_factory=lambda: torch.empty(0))
    parts_NW: dict[str, Tensor] = field(default_factory=dict)
    heads: int = 0
    head_width: int = 0

    @property
    def tokens(self) -> int:
        """The number L of tokens of a row."""
        return self.inputs_BLD.shape[1]


def look(teacher: Teacher, layer: int, rows: int, tokens: int, closely: bool = False) -> Seen:
    """Run made-up rows and return the layer's inputs, queries, keys and values.

    With `closely`, every token is at position 0, and the calls of the layer's modules are returned, too.

    Raises:
        NotFoundError: if the layer's input is not a hidden state, or if the layer has no attention that can be seen.
    """
    assert teacher.attention is not None
    model, module = teacher.model.base_model, teacher.trunk.modules[layer - 1]
    vocabulary = teacher.model.get_input_embeddings().weight.shape[0]
    shares_N = (torch.arange(1, rows * tokens + 1, dtype=torch.float64) * _GOLDEN).remainder(1)
    ids_BL = (shares_N * vocabulary).long().view(rows, tokens).to(teacher.model.device)
    inputs: dict[str, Any] = {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL), "return_dict": True}
    accepted = inspect.signature(model.forward).parameters
    if closely and "position_ids" in accepted:
        inputs["position_ids"] = torch.full_like(ids_BL, teacher.attention.first_position or 0)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    seen = Seen()
    with _watched(module, seen, closely), teacher.attention.capture({layer: module}) as captured:
        output = model(**inputs, output_hidden_states=True)
    states_BLD = output.hidden_states[layer - 1]
    if not same(states_BLD, seen.inputs_BLD):
        raise NotFoundError("what enters the layer is not the hidden state of the layer below")
    if layer not in captured:
        raise NotFoundError("the layer has no attention, or one that cannot be observed")
    _note_parts(seen, captured[layer])
    return seen


def _note_parts(seen: Seen, captured: Captured) -> None:
    for part, states_BHLD in captured.parts_BHLD.items():
        seen.parts_NW[part] = states_BHLD.transpose(1, 2).flatten(2).flatten(0, 1)
    seen.heads, seen.head_width = captured.heads, captured.parts_BHLD["queries"].shape[-1]


@contextmanager
def _watched(layer: nn.Module, seen: Seen, closely: bool) -> Iterator[None]:
    """In the block, a forward pass notes the layer's input and, if `closely`, the calls of its smallest modules."""

    def note(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if given and isinstance(given[0], Tensor) and isinstance(output, Tensor):
            seen.calls.append(Call(module, given[0], output))

    def enter(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.inputs_BLD = given[0] if given else named["hidden_states"]

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True)]
    if closely:
        hooks += [each.register_forward_hook(note) for each in layer.modules() if not list(each.children())]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def block_of(wanted_NW: Tensor, output_NK: Tensor, head_width: int) -> Tensor | None:
    """Return which outputs [W] of a projection, one beside the other from the beginning of a head on, the wanted ones
    are up to a factor; None if they are not there."""
    width, outputs = wanted_NW.shape[1], output_NK.shape[1]
    for start in range(0, outputs - width + 1, head_width):
        if is_multiple(output_NK[:, start : start + width], wanted_NW):
            return torch.arange(start, start + width, device=output_NK.device)
    return None


def columns_of(wanted_NW: Tensor, output_NK: Tensor) -> Tensor | None:
    """Return which outputs [W] of a projection, in any order, the wanted ones are; None if they are not there."""
    # Exact distances, because columns that are nearly constant are alike.
    mode = "donot_use_mm_for_euclid_dist"
    nearest = [
        torch.cdist(some_WN, output_NK.T.contiguous(), compute_mode=mode).argmin(-1)
        for some_WN in wanted_NW.T.contiguous().split(COLUMNS_AT_ONCE)
    ]
    index_W = torch.cat(nearest)
    return index_W if error_of(output_NK[:, index_W], wanted_NW) <= FLOAT_ERROR else None


def ratio_of(wanted: Tensor, found: Tensor) -> float:
    """Return the factor by which `found` must be multiplied to be `wanted`, by least squares."""
    return float((wanted * found).sum() / found.square().sum().clamp(min=torch.finfo(torch.float32).tiny))


def is_multiple(found_NW: Tensor, wanted_NW: Tensor) -> bool:
    """Return whether `wanted` is a multiple of `found`, roughly."""
    return error_of(found_NW * ratio_of(wanted_NW, found_NW), wanted_NW) <= ROUGH_ERROR


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors, perhaps on two devices, are equal; NaN equals 0."""
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num().to(one.device))


def error_of(found_NW: Tensor, wanted_NW: Tensor) -> float:
    """Return the largest error of a vector, relative to its norm or to the mean norm, whichever is larger."""
    error_N = torch.linalg.vector_norm(found_NW - wanted_NW, dim=-1)
    norm_N = torch.linalg.vector_norm(wanted_NW, dim=-1)
    relative_N = error_N / torch.maximum(norm_N, norm_N.mean()).clamp(min=torch.finfo(torch.float32).tiny)
    return float(relative_N.nan_to_num(torch.inf).max())


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the largest `error_of` of what was computed in this type."""
    return max(FLOAT_ERROR, ROUNDINGS * torch.finfo(dtype).eps)


def as_rows(states: Tensor, tokens: int) -> Tensor:
    """Return [B, L, K], [B, L, H, d] or [B, H, L, d] as float32 [N, K]; `tokens` (L) tells them apart."""
    if states.ndim == 4 and states.shape[1] != tokens:
        states = states.transpose(1, 2)
    return states.flatten(2).flatten(0, 1).float() if states.ndim > 2 else states.float()
