"""What a student's attention works with: queries, keys and values of some layers, with their gradients.

transformers' models look up their attention function by a name in the configuration that each attention module holds.
While `capture` is open, the modules of the layers in question hold a copy of it with our name, and what is registered
under that name takes note and hands on to the student's own function. Masks are made from the model's own configuration
and stay as they are; afterwards the model is as it was.

Shapes: B rows, L tokens of the longest, T tokens without padding, H heads, D width (of a head, or of all together).
"""

import copy
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from shared.errors import RecipeError

NAME = "lectern-student"
# How a dump's signals of them are called, followed by the layer.
PARTS = ("queries", "keys", "values")


@dataclass(frozen=True)
class Attended:
    """What attention works with in one layer, at all tokens: each of PARTS as [T, D], heads side by side.

    Attributes:
        lengths: tokens of each row; rows lie one after the other.
        is_causal: whether no token attends to those after it.
        heads: how many heads the queries have.
    """

    parts_TD: dict[str, Tensor]
    lengths: tuple[int, ...]
    is_causal: bool
    heads: int

    @property
    def widths(self) -> dict[str, int]:
        """Width of each part."""
        return {name: part_TD.shape[1] for name, part_TD in self.parts_TD.items()}


@dataclass(frozen=True)
class Captured:
    """The same as the attention function is given it, [B, H, L, D]: after rotary embedding where there is one. Keys and
    values have fewer heads under grouped-query attention."""

    parts_BHLD: tuple[Tensor, Tensor, Tensor]
    is_causal: bool

    @property
    def widths(self) -> dict[str, int]:
        """Width of each part, all heads together."""
        return {name: part.shape[1] * part.shape[3] for name, part in zip(PARTS, self.parts_BHLD, strict=True)}

    @property
    def heads(self) -> int:
        """How many heads the queries have."""
        return self.parts_BHLD[0].shape[1]

    def at_tokens(self, is_token_BL: Tensor) -> Attended:
        """Without padding."""
        parts = (part_BHLD.transpose(1, 2).flatten(2)[is_token_BL] for part_BHLD in self.parts_BHLD)
        lengths = tuple(is_token_BL.sum(dim=1).tolist())
        return Attended(dict(zip(PARTS, parts, strict=True)), lengths, self.is_causal, self.heads)


@contextmanager
def capture(model: nn.Module, layers: Iterable[int]) -> Iterator[dict[int, Captured]]:
    """While open, a forward pass of `model` (a PreTrainedModel, or a wrapper around one) fills in what attention in
    these layers works with, by the layer's number as given: 1 or -1 and so on, as hidden states are counted.

    Raises:
        RecipeError: for a layer that the student lacks; in the forward pass, where attention in one of them runs twice,
            so that it cannot be told which is meant.
    """
    captured: dict[int, Captured] = {}
    replaced: list[tuple[nn.Module, PreTrainedConfig]] = []
    try:
        for layer, numbers in _layers(model, layers):
            for module in layer.modules():
                config = vars(module).get("config")
                if isinstance(config, PreTrainedConfig):
                    ours = copy.copy(config)
                    ours._attn_implementation_internal = NAME
                    ours._lectern_route = _Route(config._attn_implementation, numbers, captured)
                    replaced.append((module, config))
                    module.config = ours
        yield captured
    finally:
        for module, config in replaced:
            module.config = config


def captured_on_probe(student: nn.Module, layer: int) -> Captured:
    """What `capture` gives for a short made-up row, to see widths before the first step.

    Raises:
        RecipeError: for a layer that the student lacks, and for a student that does not show it.
    """
    ids_BL = torch.zeros((1, 2), dtype=torch.long, device=next(student.parameters()).device)
    was_training = student.training
    try:
        with torch.no_grad(), capture(student, [layer]) as captured:
            student.eval()
            student(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL))
    finally:
        student.train(was_training)
    if layer not in captured:
        raise RecipeError(
            f"the loss 'relations': a student of type {type(student).__name__} does not show its queries, keys and "
            "values; leave the loss out, or train a transformer such as BERT."
        )
    return captured[layer]


@dataclass(frozen=True)
class _Route:
    """Where calls go from our function, and under which numbers they are noted."""

    delegate: str
    numbers: tuple[int, ...]
    captured: dict[int, Captured]


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, Tensor | None]:
    config: Any = module.config
    route: _Route = config._lectern_route
    for number in route.numbers:
        if number in route.captured:
            raise RecipeError(
                f"the loss 'relations': attention runs more than once in the student's layer {number}, so its queries, "
                "keys and values cannot be told apart; choose another layer, or leave the loss out."
            )
        route.captured[number] = Captured((query, key, value), bool(getattr(module, "is_causal", False)))
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(route.delegate, eager)
    return function(module, query, key, value, attention_mask, **options)


AttentionInterface.register(NAME, _attend)


def _layers(model: nn.Module, asked_for: Iterable[int]) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """The modules of the layers, each with the numbers by which it is asked for; none where the model has no list of as
    many modules as it has layers."""
    student = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    count = 0 if student is None else getattr(student.config.get_text_config(), "num_hidden_layers", 0)
    if student is None or not count:
        return []
    lists = (module for module in student.base_model.modules() if isinstance(module, nn.ModuleList))
    modules = next((tuple(each) for each in lists if len(each) == count), ())
    asked: dict[int, tuple[int, ...]] = {}
    for number in dict.fromkeys(asked_for):
        index = number - 1 if number > 0 else count + number
        if number == 0 or not 0 <= index < count:
            raise RecipeError(
                f"the loss 'relations' with student_layer = {number}: the student has layers 1 to {count} (or -1)."
            )
        asked[index] = (*asked.get(index, ()), number)
    return [(modules[index], numbers) for index, numbers in asked.items()] if modules else []
