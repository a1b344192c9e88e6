"""A model's attention, routed to functions of ours, and what it works with: queries, keys and values of some layers.

transformers' models look up their attention function, and the function that makes their masks, by a name in the
configuration that their modules hold. While a block here is open that name is ours, and what is registered under it
looks at the call and hands on to the model's own function. Afterwards the model is as it was.

Shapes: B rows, L tokens of the longest, H heads, D their width.
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

# (the name of the model's own function, its module, queries, keys, values, mask, **options) -> what that function gives
Attend = Callable[..., tuple[Tensor, Tensor | None]]
# (the name of the model's own function, the arguments for it) -> a mask of the model's kind
MakeMask = Callable[[str, dict[str, Any]], Any]


@dataclass(frozen=True)
class Captured:
    """What attention works with in one layer, as its function is given it: after rotary embedding where there is one.
    Some models (OPT) scale queries beforehand.

    Attributes:
        parts_BHLD: queries, keys and values, each [B, H, L, D], by their names in RELATIONS. Keys and values have fewer
            heads under grouped-query attention.
        is_causal: whether no token attends to those after it.
    """

    parts_BHLD: dict[str, Tensor]
    is_causal: bool

    @property
    def widths(self) -> dict[str, int]:
        """Width of each part, all heads together."""
        return {name: part.shape[1] * part.shape[3] for name, part in self.parts_BHLD.items()}

    @property
    def heads(self) -> int:
        """How many heads the queries have."""
        return self.parts_BHLD[RELATIONS[0]].shape[1]


class Capture:
    """What attention inside of some layers is given, by the numbers under which the layers are asked for.

    Args:
        layers: modules by number; one module may have several numbers.
        refusal: the exception for a layer of this number in which attention runs more than once in a forward pass, so
            that it cannot be told which is meant (all of ALBERT's layers are one module).
    """

    def __init__(self, layers: Mapping[int, nn.Module], refusal: Callable[[int], Exception]) -> None:
        self.captured: dict[int, Captured] = {}
        self._refusal = refusal
        self._numbers_of: dict[int, tuple[int, ...]] = {}
        for number, layer in layers.items():
            for part in layer.modules():
                self._numbers_of[id(part)] = (*self._numbers_of.get(id(part), ()), number)

    def note(self, module: nn.Module, *parts_BHLD: Tensor) -> None:
        """Take note of the queries, keys and values that an attention module is about to use."""
        for number in self._numbers_of.get(id(module), ()):
            if number in self.captured:
                raise self._refusal(number)
            parts = dict(zip(RELATIONS, parts_BHLD, strict=True))
            self.captured[number] = Captured(parts, bool(getattr(module, "is_causal", False)))

    @contextmanager
    def renewed(self, model: nn.Module) -> Iterator[dict[int, Captured]]:
        """While open, every forward pass of the model begins with nothing captured."""
        hook = model.register_forward_pre_hook(lambda module, arguments: self.captured.clear())
        try:
            yield self.captured
        finally:
            hook.remove()


@contextmanager
def captured_in(
    model: PreTrainedModel, layers: Mapping[int, nn.Module], refusal: Callable[[int], Exception]
) -> Iterator[dict[int, Captured]]:
    """While open, a forward pass of the model fills in what attention in these layers works with, by their numbers, as
    parts of autograd's graph.

    The layers' modules hold a copy of their configuration meanwhile, so that everything else of the model, its masks
    too, follows its own: any attention function may be looked at in this way, not only those that `routed` may replace
    in a whole model. `refusal` is what `Capture` raises.
    """
    capture = Capture(layers, refusal)

    def attend(own: str, module: nn.Module, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        capture.note(module, *arguments[:3])
        return own_attention(own, module)(module, *arguments, **options)

    with _configured_apart(layers.values()) as configs, routed(configs, attend), capture.renewed(model) as captured:
        yield captured


@contextmanager
def routed(configs: Iterable[PreTrainedConfig], attend: Attend, make_mask: MakeMask | None = None) -> Iterator[None]:
    """While open, modules that read these very configurations (objects, not values) call `attend` for attention, and
    `make_mask` for masks. Without `make_mask` the model's own function makes them.

    Routed by the same `attend` already, a configuration stays as it is.

    Raises:
        AlreadyRoutedError: where a configuration is routed to another function.
    """
    opened: list[_Route] = []
    for config in configs:
        if id(config) not in _ROUTES and config._attn_implementation != NAME:
            opened.append(_Route(config, config._attn_implementation, attend, make_mask or _own_mask))
        elif id(config) not in _ROUTES or _ROUTES[id(config)].attend != attend:  # a routed one's copy; someone else's
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
    """A model's attention is routed elsewhere."""


def own_attention(own: str, module: nn.Module) -> Callable[..., Any]:
    """The attention function that a module calls by this name, which is its own ("eager") or one of transformers'."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(own, eager)
    return function


def own_mask_function(own: str) -> Callable[..., Any]:
    """The function that makes the masks for the attention function of this name."""
    function: Callable[..., Any] = ALL_MASK_ATTENTION_FUNCTIONS[own]
    return function


def configs_of(model: nn.Module) -> list[PreTrainedConfig]:
    """Every configuration that a part of the model reads, each once."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in configs if isinstance(config, PreTrainedConfig)}.values())


@dataclass(frozen=True)
class _Route:
    """Where calls for a configuration go, and the name of the model's own function. (The configuration is held so that
    its id, by which it is found, stays its own.)"""

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
    """While open, each module inside of these parts reads a copy of its configuration: these copies."""
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
