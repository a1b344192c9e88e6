"""Interception of a model's attention, and capture of the queries, keys and values of some layers.

transformers' models look up their attention function, and the function that makes their masks, by a name in the
configuration of their modules. In a block here that name is replaced, and the function that is registered under it sees
each call and passes it on to the model's own function. After the block the model is unchanged.

Shapes: B rows, L tokens of the longest row, H heads, D width of a head.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from shared.dump.signals import RELATIONS

NAME = "lectern"

# (name of the model's own function, module, queries, keys, values, mask, **options) -> the result of that function
Attend = Callable[..., tuple[Tensor, Tensor | None]]
# (name of the model's own function, its arguments) -> a mask of the model's kind
MakeMask = Callable[[str, dict[str, Any]], Any]


@dataclass(frozen=True)
class Captured:
    """Queries, keys and values of one layer, as its attention function receives them: after rotary embedding, if any.
    Some models (OPT) scale queries beforehand.

    Attributes:
        parts_BHLD: name in RELATIONS -> queries, keys or values [B, H, L, D]. With grouped-query attention, keys and
            values have fewer heads.
        is_causal: whether tokens do not attend to later ones.
    """

    parts_BHLD: dict[str, Tensor]
    is_causal: bool

    @property
    def widths(self) -> dict[str, int]:
        """The width of each part, all heads together."""
        return {name: part.shape[1] * part.shape[3] for name, part in self.parts_BHLD.items()}

    @property
    def heads(self) -> int:
        """The number of heads of the queries."""
        return self.parts_BHLD[RELATIONS[0]].shape[1]


class Capture:
    """A recorder of the queries, keys and values in some layers, by the layers' numbers.

    Args:
        layers: modules by number; one module may have several numbers.
        refusal: makes the exception for a layer (by its number) in which attention runs more than once per forward
            pass, because its queries, keys and values are then ambiguous (all layers of ALBERT are one module).
    """

    def __init__(self, layers: Mapping[int, nn.Module], refusal: Callable[[int], Exception]) -> None:
        self.captured: dict[int, Captured] = {}
        self._refusal = refusal
        self._numbers_of: dict[int, tuple[int, ...]] = {}
        for number, layer in layers.items():
            for part in layer.modules():
                self._numbers_of[id(part)] = (*self._numbers_of.get(id(part), ()), number)

    def note(self, module: nn.Module, *parts_BHLD: Tensor) -> None:
        """Record the queries, keys and values that an attention module is about to use."""
        for number in self._numbers_of.get(id(module), ()):
            if number in self.captured:
                raise self._refusal(number)
            parts = dict(zip(RELATIONS, parts_BHLD, strict=True))
            self.captured[number] = Captured(parts, bool(getattr(module, "is_causal", False)))

    @contextmanager
    def renewed(self, model: nn.Module) -> Iterator[dict[int, Captured]]:
        """In the block, every forward pass of the model begins with nothing captured."""
        hook = model.register_forward_pre_hook(lambda module, arguments: self.captured.clear())
        try:
            yield self.captured
        finally:
            hook.remove()


@contextmanager
def captured_in(
    model: PreTrainedModel, layers: Mapping[int, nn.Module], refusal: Callable[[int], Exception]
) -> Iterator[dict[int, Captured]]:
    """In the block, a forward pass of the model fills the dict with the queries, keys and values of these layers, by
    their numbers, as parts of autograd's graph.

    In the block, the layers' modules have a copy of their configuration, so that the rest of the model, including its
    masks, uses the original one. So any attention function can be captured, not only those that `routed` can replace in
    a whole model. `refusal` makes the exception that `Capture` raises.
    """
    capture = Capture(layers, refusal)

    def attend(own: str, module: nn.Module, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        capture.note(module, *arguments[:3])
        return own_attention(own, module)(module, *arguments, **options)

    with _configured_apart(layers.values()) as configs, routed(configs, attend), capture.renewed(model) as captured:
        yield captured


@contextmanager
def routed(configs: Iterable[PreTrainedConfig], attend: Attend, make_mask: MakeMask | None = None) -> Iterator[None]:
    """In the block, modules with these configurations (the same objects) call `attend` for attention, and `make_mask`
    for masks. Without `make_mask`, the model's own function makes masks.

    A configuration that is already routed to the same `attend` is left unchanged.

    Raises:
        AlreadyRoutedError: if a configuration is routed to another function.
    """
    opened: list[_Route] = []
    for config in configs:
        if id(config) not in _ROUTES and config._attn_implementation != NAME:
            opened.append(_Route(config, config._attn_implementation, attend, make_mask or _own_mask))
        # A copy of a routed configuration, or one that is routed to another function.
        elif id(config) not in _ROUTES or _ROUTES[id(config)].attend != attend:
            raise AlreadyRoutedError
    try:
        for route in opened:
            _ROUTES[id(route.config)] = route
            route.config._attn_implementation_internal = NAME
        yield
    finally:
        for route in opened:
            route.config._attn_implementation_internal = route.own
            del _ROUTES[id(route.config)]


class AlreadyRoutedError(Exception):
    """A model's attention is already routed to another function."""


def own_attention(own: str, module: nn.Module) -> Callable[..., Any]:
    """Return the attention function that a module calls by this name: its own ("eager") or one of transformers'."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(own, eager)
    return function


def own_mask_function(own: str) -> Callable[..., Any]:
    """Return the function that makes the masks for the attention function with this name."""
    function: Callable[..., Any] = ALL_MASK_ATTENTION_FUNCTIONS[own]
    return function


def configs_of(model: nn.Module) -> list[PreTrainedConfig]:
    """Return all configurations that modules of the model have, each once."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in configs if isinstance(config, PreTrainedConfig)}.values())


@dataclass(frozen=True)
class _Route:
    """The functions for a configuration, and the name of the model's own function.

    It references the configuration so that its id, by which the route is found, is not reused.
    """

    config: PreTrainedConfig
    own: str
    attend: Attend
    make_mask: MakeMask


_ROUTES: dict[int, _Route] = {}


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, Tensor | None]:
    config: Any = module.config
    route = _ROUTES[id(config)]
    return route.attend(route.own, module, query, key, value, attention_mask, **options)


def _make_mask(**arguments: Any) -> Any:
    route = _ROUTES[id(arguments["config"])]
    return route.make_mask(route.own, arguments)


def _own_mask(own: str, arguments: dict[str, Any]) -> Any:
    return own_mask_function(own)(**arguments)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _make_mask)


@contextmanager
def _configured_apart(parts: Iterable[nn.Module]) -> Iterator[list[PreTrainedConfig]]:
    """In the block, each module in these parts has a copy of its configuration; gives the copies."""
    replaced: dict[int, tuple[Any, PreTrainedConfig]] = {}
    try:
        for module in (module for part in parts for module in part.modules()):
            config = vars(module).get("config")
            if isinstance(config, PreTrainedConfig) and id(module) not in replaced:
                replaced[id(module)] = module, config
                module.config = copy.copy(config)
        yield [module.config for module, _ in replaced.values()]
    finally:
        for module, config in replaced.values():
            module.config = config
