"""Queries, keys and values that a dump does not store, but from which they are computed: inputs of attention.

A loss finds them among a source's signals like stored ones, under the same keys.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from shared.dump.codecs import Column, VectorCodec
from shared.dump.dump import Dump
from shared.dump.signals import ATTENTION_INPUTS, HIDDEN, RELATIONS, Per, Signal, SignalKey
from shared.dump.weights.projections import AttentionLayer, Projections, facts_from_file
from shared.dump.weights.tensor_file import ATTENTION


@dataclass
class ReadOnce:
    """The projections of all layers of a dump, read when the first of them is used; kept on each device once."""

    read: Callable[[], Mapping[int, Projections]]
    _read: Mapping[int, Projections] | None = None
    _on_device: dict[tuple[int, torch.device], Projections] = field(default_factory=dict)

    def of(self, layer: int, device: torch.device) -> Projections:
        """Return the projections of a layer in float32. Raises DumpError if their file is missing or damaged."""
        if self._read is None:
            self._read = self.read()
        if (layer, device) not in self._on_device:
            self._on_device[layer, device] = self._read[layer].in_type(torch.float32, device)
        return self._on_device[layer, device]


@dataclass(frozen=True)
class ProjectedSignal:
    """The queries, keys or values (`part`) of a layer, computed from inputs that are stored.

    Attributes:
        inputs: the stored signal.
        codec: the codec of the inputs.
    """

    part: str
    layer: int
    inputs: Signal
    codec: VectorCodec
    facts: AttentionLayer
    projections: ReadOnce

    @property
    def width(self) -> int:
        """The width of all heads together."""
        return self.facts.part(self.part).width

    @property
    def columns(self) -> tuple[Column, ...]:
        """The Parquet columns that it is computed from."""
        return self.inputs.columns

    @property
    def per(self) -> Per:
        """What an entry belongs to."""
        return self.inputs.per

    @property
    def is_distribution(self) -> bool:
        """False, because it is vectors."""
        return False


def signals_of(dump: Dump) -> dict[SignalKey, Signal | ProjectedSignal]:
    """Return a dump's signals and those that are computed from inputs of attention, unless they are stored, too.

    The input of a layer is the hidden state of the layer below, so it is that signal as well.

    Raises:
        DumpError: if the manifest's facts about the projections are damaged.
    """
    stored = {signal.key: signal for signal in dump.manifest.signals}
    found: dict[SignalKey, Signal | ProjectedSignal] = dict(stored)
    projections = dump.manifest.tensor_files.get(ATTENTION)
    if projections is None:
        return found
    read = ReadOnce(dump.attention_projections)
    for layer, facts in facts_from_file(projections.facts).items():
        inputs = stored.get(SignalKey(ATTENTION_INPUTS, layer))
        if inputs is not None and isinstance(inputs.codec, VectorCodec):
            found.setdefault(SignalKey(HIDDEN, layer - 1), inputs)
            for part in RELATIONS:
                made = ProjectedSignal(part, layer, inputs, inputs.codec, facts, read)
                found.setdefault(SignalKey(part, layer), made)
    return found


def computed_widths(signals: Mapping[SignalKey, Signal | ProjectedSignal]) -> dict[SignalKey, int]:
    """Return the widths of those signals that are computed."""
    return {key: signal.width for key, signal in signals.items() if isinstance(signal, ProjectedSignal)}
