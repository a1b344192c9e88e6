"""The layers of a model.

transformers has no common name for them, but every architecture has them in a `ModuleList`. If there are several such
lists (convolutions before the layers, experts inside a layer, an image tower), it is the one with the most parameters.
"""

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the stack of layers: the base model's list of modules with the most parameters; empty if there is none.

    In an encoder-decoder this is usually the decoder, because its layers are larger.
    """
    return _largest(model.base_model, None)


def numbered_layers(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """Return the layers in the order of `hidden_states`: the output of the layer at index n - 1 is hidden state n.

    It is empty if no stack has as many modules as the configuration has layers (in ALBERT all layers are one module,
    which runs several times). In an encoder-decoder they are the layers of the encoder, because `num_hidden_layers`
    counts those.
    """
    count = layer_count(model)
    if not count:
        return ()
    return tuple(
        _largest(model.base_model.get_encoder() if model.config.is_encoder_decoder else model.base_model, count)
    )


def layer_count(model: PreTrainedModel) -> int:
    """Return the number of layers in the configuration of the model, or of its text part; 0 if it has none."""
    return getattr(model.config.get_text_config(), "num_hidden_layers", None) or 0


def _largest(part: nn.Module, count: int | None) -> nn.ModuleList:
    """Return the list of modules with the most parameters in this part; with `count`, among the lists of that
    length."""
    stacks = list(_stacks(part, count))
    if len(stacks) == 1:
        return stacks[0]
    return max(stacks, key=lambda stack: sum(value.numel() for value in stack.parameters()), default=nn.ModuleList())


def _stacks(part: nn.Module, count: int | None) -> Iterator[nn.ModuleList]:
    """Yield these lists, except lists inside other lists: those are never larger, and to visit them would cost time in
    every training step of a student."""
    if isinstance(part, nn.ModuleList) and count in (None, len(part)):
        yield part
    else:
        for child in part.children():
            yield from _stacks(child, count)
