"""How this engine gets the signals: for each site, the layers that a forward pass must keep, and the vectors of them.

Shapes: B rows, L tokens of the longest, T tokens of all rows, H heads, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.dump.signals import ATTENTION_INPUTS, EMBEDDING, HIDDEN, RELATIONS, SignalKey
from shared.errors import TeacherError
from shared.models.attention import Captured
from shared.models.pooling import pooled
from shared.models.probe import FEWEST_TOKENS, probe_inputs
from shared.registry import Registry
from teacher_dump.engines.transformers.teacher import Teacher


@dataclass(frozen=True)
class ForwardPass:
    """The kept outputs of a forward pass.

    Attributes:
        hidden: hidden states by layer, [B, L, D].
        attention: queries, keys and values by layer.
        token_T: indices of the rows' tokens in the flattened [B * L].
        lengths: number of tokens of each row.
    """

    hidden: Mapping[int, Tensor]
    attention: Mapping[int, Captured]
    token_T: Tensor
    lengths: Sequence[int]

    def tokens(self, states_BLD: Tensor) -> Tensor:
        """The states [T, D] of the rows' tokens, row by row, without padding."""
        return states_BLD.flatten(0, 1)[self.token_T.to(states_BLD.device)]


class Source(ABC):
    """How the vectors of a site are taken from a forward pass. Layers are numbered as in transformers."""

    def layers(self, teacher: Teacher) -> Sequence[int | None]:
        """The layers that have such vectors, in ascending order; empty if the teacher does not give them.

        (None,), the default, is for a site that does not belong to a layer.
        """
        return (None,)

    def hidden_layer(self, teacher: Teacher, layer: int | None) -> int | None:
        """The layer whose hidden states `take` needs; None for no layer."""
        return None

    def attention_layer(self, teacher: Teacher, layer: int | None) -> int | None:
        """The layer whose queries, keys and values `take` needs; None for no layer."""
        return None

    @abstractmethod
    def take(self, passed: ForwardPass, teacher: Teacher, layer: int | None) -> Tensor:
        """The vectors, of any floating type: [T, D], or one per position or row if the site's `per` says so."""


class HiddenStates(Source):
    """The hidden states of a layer."""

    def layers(self, teacher: Teacher) -> Sequence[int | None]:
        return range(teacher.layers + 1) if teacher.trunk.gives_states else ()

    def hidden_layer(self, teacher: Teacher, layer: int | None) -> int | None:
        return layer

    def take(self, passed: ForwardPass, teacher: Teacher, layer: int | None) -> Tensor:
        assert layer is not None
        return passed.tokens(passed.hidden[layer])


@dataclass(frozen=True)
class PartOfAttention(Source):
    """The queries, keys or values of a layer, with the heads concatenated; `part` says which."""

    part: str

    def layers(self, teacher: Teacher) -> Sequence[int | None]:
        is_seen = teacher.attention is not None and len(teacher.trunk.modules) > 0
        return range(1, teacher.layers + 1) if is_seen else ()

    def attention_layer(self, teacher: Teacher, layer: int | None) -> int | None:
        return layer

    def take(self, passed: ForwardPass, teacher: Teacher, layer: int | None) -> Tensor:
        assert layer is not None
        return passed.tokens(passed.attention[layer].parts_BHLD[self.part].transpose(1, 2).flatten(2))


class Embeddings(Source):
    """The embeddings of rows, pooled from the last hidden states."""

    def layers(self, teacher: Teacher) -> Sequence[int | None]:
        return (None,) if teacher.pooling is not None and teacher.trunk.gives_states else ()

    def hidden_layer(self, teacher: Teacher, layer: int | None) -> int:
        return teacher.layers

    def take(self, passed: ForwardPass, teacher: Teacher, layer: int | None) -> Tensor:
        assert teacher.pooling is not None
        return pooled(passed.tokens(passed.hidden[teacher.layers]), passed.lengths, teacher.pooling)


class AttentionInputs(Source):
    """The inputs of a layer, which are the hidden states of the layer below.

    Whether queries, keys and values can be computed from them is found out by `projections_of`, which observes them.
    """

    def layers(self, teacher: Teacher) -> Sequence[int | None]:
        is_seen = teacher.attention is not None and len(teacher.trunk.modules) > 0 and teacher.trunk.gives_states
        return range(1, teacher.layers + 1) if is_seen else ()

    def hidden_layer(self, teacher: Teacher, layer: int | None) -> int | None:
        assert layer is not None
        return layer - 1

    def take(self, passed: ForwardPass, teacher: Teacher, layer: int | None) -> Tensor:
        assert layer is not None
        return passed.tokens(passed.hidden[layer - 1])


SOURCES: Registry[Source] = Registry(
    "signal of this teacher",
    {HIDDEN: HiddenStates(), EMBEDDING: Embeddings(), ATTENTION_INPUTS: AttentionInputs()}
    | {site: PartOfAttention(site) for site in RELATIONS},
)


def layers_of(teacher: Teacher, keys: Iterable[SignalKey]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(the layers whose hidden states are needed, the layers whose attention is needed), each in ascending order."""
    sources = [(SOURCES.named(site), layer) for site, layer in keys]
    hidden = {source.hidden_layer(teacher, layer) for source, layer in sources}
    attention = {source.attention_layer(teacher, layer) for source, layer in sources}
    return _numbers(hidden), _numbers(attention)


@torch.inference_mode()
def widths_of(teacher: Teacher, keys: Sequence[SignalKey]) -> list[int]:
    """The width of the vectors of each signal, measured on an artificial row.

    Raises:
        TeacherError: if the teacher does not give them.
    """
    hidden, attention = layers_of(teacher, keys)
    # Hidden states are as wide as the model, so the model need not be run for them.
    states = {layer: torch.zeros(1, FEWEST_TOKENS, teacher.width) for layer in hidden}
    shown = ForwardPass(states, _attention_on_probe(teacher, attention), torch.arange(FEWEST_TOKENS), [FEWEST_TOKENS])
    return [SOURCES.named(site).take(shown, teacher, layer).shape[-1] for site, layer in keys]


def _attention_on_probe(teacher: Teacher, layers: Sequence[int]) -> dict[int, Captured]:
    parts: dict[int, Captured] = {}
    if layers:
        assert teacher.attention is not None
        with teacher.attention.capture({layer: teacher.trunk.modules[layer - 1] for layer in layers}) as parts:
            teacher.model.base_model(**probe_inputs(teacher.model, FEWEST_TOKENS))
    for layer in layers:
        if layer not in parts:
            raise TeacherError(
                f"--relations {layer}: {type(teacher.model).__name__} does not give its queries, keys and values; "
                "leave --relations out, or use a teacher of another architecture."
            )
    return parts


def _numbers(layers: Collection[int | None]) -> tuple[int, ...]:
    return tuple(sorted(layer for layer in layers if layer is not None))
