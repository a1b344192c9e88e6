"""A model's attention through a function of ours: rows packed without padding, and queries, keys and values looked at.

transformers' models look up their attention function, and the function that makes their masks, by a name in their
configuration. While a context of `Attention` is open that name is ours, and what is ours hands on to the model's own
(`sdpa` or `eager`). Outside of these contexts the model is as it was.

Shapes: B rows, L tokens of the longest, T tokens of all packed rows, H heads, D their width.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from shared.errors import TeacherError
from teacher_dump.engines.transformers.packing import (
    Run,
    RunMasks,
    attend_packed,
    masks_of_runs,
    runs_of,
    varlen_serves,
)
from teacher_dump.engines.transformers.packing_probe import first_position_of, same_when_packed, same_within

NAME = "lectern"
DELEGATES = ("sdpa", "eager")

Captured = dict[int, tuple[Tensor, Tensor, Tensor]]


class Attention:
    """A model's attention, routed through transformers' AttentionInterface to a function of ours.

    Routed is what reads the model's configuration object; `from_pretrained` gives every model one of its own.

    Attributes:
        packs: whether packed rows give what each row gives alone (teacher_dump/engines/transformers/packing_probe.py).
        first_position: what `packed_inputs` needs to know: the position id of a row's first token, or None where the
            model takes no position ids.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.packs = False
        self.first_position: int | None = None
        self.calls = 0
        self._runs: tuple[Run, ...] | None = None
        self._layer_of: dict[int, int] = {}
        self._captured: Captured = {}

    @classmethod
    def take_over(cls, model: PreTrainedModel) -> "Attention | None":
        """None where the model's attention does not go through the interface (DeBERTa, MPNet, BLOOM, models with code
        of their own), or where a single bit would change with ours in its place. The model, which must be in evaluation
        mode, is left exactly as it was."""
        if not _can_be_routed(model):
            return None
        attention = cls(model)
        with torch.inference_mode():
            # A model may fail in any way when it meets what it was not made for, and then it is left alone.
            try:
                if not same_within(model, attention._routed) or not attention.calls:
                    return None
            except Exception:
                return None
            try:
                attention.first_position = first_position_of(model)
                attention.packs = same_when_packed(model, attention.first_position, attention._packing)
            except Exception:
                attention.packs = False
        return attention

    @contextmanager
    def packed(self, lengths: Sequence[int]) -> Iterator[None]:
        """While open, a forward pass over `packed_inputs` [1, T] holds rows of these lengths one after the other, and
        no token sees another row.

        Raises:
            TeacherError: for a model that does not pack.
        """
        if not self.packs:
            raise TeacherError(f"{type(self.model).__name__}: its rows cannot be packed; pad them.")
        with self._packing(lengths):
            yield

    @contextmanager
    def capture(self, layers: Mapping[int, nn.Module]) -> Iterator[Captured]:
        """While open, a forward pass fills in the queries, keys and values that attention inside each of these modules
        (transformer layers) works with: [B, H, L, D], packed [1, H, T, D]; after rotary embedding where there is one.

        Keys and values have fewer heads under grouped-query attention. Some models (OPT) scale queries beforehand.

        Raises:
            TeacherError: in the forward pass, where attention inside one of the modules runs twice (ALBERT's layers are
                all one module), so that it cannot be told which is meant.
        """
        before = self._layer_of, self._captured
        self._layer_of = {id(part): index for index, layer in layers.items() for part in layer.modules()}
        captured: Captured = {}
        self._captured = captured
        fresh = self.model.register_forward_pre_hook(lambda module, arguments: captured.clear())
        try:
            with self._routed():
                yield captured
        finally:
            fresh.remove()
            self._layer_of, self._captured = before

    @contextmanager
    def _packing(self, lengths: Sequence[int]) -> Iterator[None]:
        before, self._runs = self._runs, runs_of(lengths)
        try:
            with self._routed():
                yield
        finally:
            self._runs = before

    @contextmanager
    def _routed(self) -> Iterator[None]:
        """While open, the model's attention and masks are made by the two functions registered below."""
        configs = _configs_of(self.model)
        if any(_ROUTES[id(config)].attention is not self for config in configs if id(config) in _ROUTES):
            raise TeacherError(f"{type(self.model).__name__}: its attention is routed by another Attention already.")
        opened = [_Route(self, config, config._attn_implementation) for config in configs if id(config) not in _ROUTES]
        try:
            for route in opened:
                _ROUTES[id(route.config)] = route
                route.config._attn_implementation_internal = NAME
            yield
        finally:
            for route in opened:
                route.config._attn_implementation_internal = route.delegate
                del _ROUTES[id(route.config)]

    def attend(
        self, delegate: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """What the model's attention calls in place of its own function while a context is open."""
        self.calls += 1
        index = self._layer_of.get(id(module))
        if index is not None:
            if index in self._captured:
                raise TeacherError(
                    f"{type(self.model).__name__}: attention runs more than once in layer {index}, so its queries, "
                    "keys and values cannot be told apart. Choose a layer of its own, or none."
                )
            self._captured[index] = query, key, value
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        function = ALL_ATTENTION_FUNCTIONS.get_interface(delegate, eager)
        if self._runs is None:
            return function(module, query, key, value, mask, **options)
        varlen = delegate == "sdpa" and varlen_serves(query, value)
        return attend_packed(function, varlen, self._runs, module, query, key, value, mask, **options)

    def make_mask(self, delegate: str, arguments: dict[str, Any]) -> Tensor | RunMasks | None:
        """What the model calls in place of its own function that makes masks."""
        function = ALL_MASK_ATTENTION_FUNCTIONS[delegate]
        return function(**arguments) if self._runs is None else masks_of_runs(function, self._runs, arguments)


@dataclass(frozen=True)
class _Route:
    """Where calls for a configuration go: to whom, and to which function from there. (The configuration is held so that
    its id, by which it is found, stays its own.)"""

    attention: Attention
    config: PreTrainedConfig
    delegate: str


_ROUTES: dict[int, _Route] = {}


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, Tensor | None]:
    route = _ROUTES[id(module.config)]
    return route.attention.attend(route.delegate, module, query, key, value, attention_mask, **options)


def _make_mask(**arguments: Any) -> Tensor | RunMasks | None:
    route = _ROUTES[id(arguments["config"])]
    return route.attention.make_mask(route.delegate, arguments)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _make_mask)


def _configs_of(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Every configuration that a part of the model reads, each once."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in configs if isinstance(config, PreTrainedConfig)}.values())


def _can_be_routed(model: PreTrainedModel) -> bool:
    """What can be said without running it. Code of a model's own (remote code) may do anything with a mask; a compiled
    model is bound to the function that it was compiled with."""
    return (
        type(model).__module__.startswith("transformers.models.")
        and getattr(model, "_compiled_call_impl", None) is None
        and all(config._attn_implementation in DELEGATES for config in _configs_of(model))
    )
