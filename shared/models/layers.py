"""A model's layers: which of its modules they are.

transformers has no common name for them, but every architecture keeps them in a `ModuleList`. Of several such lists
(convolutions in front, experts inside of a layer, an image tower) the layers are the one with most parameters.
"""

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of layers: of the base model's lists of modules that with most parameters; empty if there is none.

    In an encoder-decoder this is usually the decoder, whose layers are larger.
    """
    return _largest(model.base_model, None)


def numbered_layers(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """The layers as `hidden_states` number them: the layer at n - 1 puts out hidden state n. Empty where no stack has
    as many modules as the configuration counts layers (in ALBERT all layers are one module, which runs several times).

    In an encoder-decoder these are the encoder's, because `num_hidden_layers` counts those.
    """
    count = layer_count(model)
    if not count:
        return ()
    return tuple(
        _largest(model.base_model.get_encoder() if model.config.is_encoder_decoder else model.base_model, count)
    )


def layer_count(model: PreTrainedModel) -> int:
    """How many layers the configuration of the model, or of its text part, counts; 0 where it does not count them."""
    return getattr(model.config.get_text_config(), "num_hidden_layers", None) or 0


def _largest(part: nn.Module, count: int | None) -> nn.ModuleList:
    """Of the lists of modules in this part (of those with `count` modules, where it is given) that with most
    parameters."""
    stacks = list(_stacks(part, count))
    if len(stacks) == 1:
        return stacks[0]
    return max(stacks, key=lambda stack: sum(value.numel() for value in stack.parameters()), default=nn.ModuleList())


def _stacks(part: nn.Module, count: int | None) -> Iterator[nn.ModuleList]:
    """These lists but for those inside of others, which are no larger: students are asked at every training step."""
    if isinstance(part, nn.ModuleList) and count in (None, len(part)):
        yield part
    else:
        for child in part.children():
            yield from _stacks(child, count)
