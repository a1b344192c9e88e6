"""Queries, keys and values of a layer, computed from the layer's input: what `dump --attention-inputs` keeps once.

A vector per token and these weights say as much as three vectors per token. The input is the layer's input, which is
the hidden state of the layer below, and not what enters the projections, which in a pre-LN model is its norm: so one
column serves as hidden states, too, and the norm costs nothing. A part (queries, keys or values) is

    rotation(scale * head_norm(norm(x) W^T + b))

where each step but the linear map may be missing. That covers post-LN and pre-LN models, grouped heads (fewer of keys
and values), norms of queries and keys, partial rotation, and factors of queries; whether it covers a teacher is found
out by computing its queries, keys and values (teacher_dump/engines/transformers/projections/). They are those that
the attention function receives, after rotation, as `--relations` stores them.

Shapes: N tokens, D width of the input, W width of all heads together, R rotated channels of a head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor
from torch.nn import functional

from shared.dump.codecs.columns import Width
from shared.dump.facts import MOST_HEADS, Frozen
from shared.dump.signals import MOST_LAYERS, RELATIONS
from shared.errors import DumpError
from shared.validation import in_words

NormKind = Literal["layer", "rms"]
RotationStyle = Literal["halves", "pairs"]


class Norm(Frozen):
    """A normalisation over the last dimension, or over groups of channels as wide as its weight.

    Attributes:
        kind: "layer" (Ba et al. 2016, arXiv 1607.06450) or "rms" (Zhang and Sennrich 2019, arXiv 1910.07467).
    """

    kind: NormKind
    epsilon: float = Field(ge=0, lt=1)

    def apply(self, values_NW: Tensor, weight_G: Tensor, bias_G: Tensor | None = None) -> Tensor:
        """Return the norm of each group of channels [N, W]; the width of the weight must divide W."""
        size = len(weight_G)
        groups_NGg = values_NW.unflatten(-1, (-1, size))
        if self.kind == "layer":
            normed_NGg = functional.layer_norm(groups_NGg, (size,), weight_G, bias_G, self.epsilon)
        else:
            scaled_NGg = groups_NGg * (groups_NGg.square().mean(-1, keepdim=True) + self.epsilon).rsqrt()
            normed_NGg = scaled_NGg * weight_G if bias_G is None else scaled_NGg * weight_G + bias_G
        return normed_NGg.flatten(-2)


class Part(Frozen):
    """The facts about the queries, keys or values of a layer.

    Attributes:
        width: width of all heads together; keys and values may have fewer heads than queries.
        norm: the norm of each head, or of all together, after the projection.
        scale: a factor, such as that of OPT's queries or of YaRN's rotation.
        rotation: rotary embedding (Su et al. 2021, arXiv 2104.09864): channel i of the rotated ones is paired with
            channel i + R / 2 ("halves"), or 2 i with 2 i + 1 ("pairs"); None for none.
    """

    width: Width
    norm: Norm | None = None
    scale: float = 1.0
    rotation: RotationStyle | None = None


class AttentionLayer(Frozen):
    """The facts about a layer's attention, beside the tensors of its projections.

    Attributes:
        heads: number of heads of the queries.
        head_width: width of a head.
        norm: the norm between the layer's input and the projections.
    """

    heads: int = Field(ge=1, le=MOST_HEADS)
    head_width: Width
    norm: Norm | None = None
    queries: Part
    keys: Part
    values: Part

    def part(self, name: str) -> Part:
        """Return the facts about "queries", "keys" or "values"."""
        parts: dict[str, Part] = {"queries": self.queries, "keys": self.keys, "values": self.values}
        return parts[name]

    @model_validator(mode="after")
    def _heads_fit(self) -> "AttentionLayer":
        if self.queries.width != self.heads * self.head_width or self.keys.width % self.head_width:
            raise ValueError(f"queries and keys are not heads of width {self.head_width}")
        return self


class AttentionFacts(Frozen):
    """The facts of the file, by the layer's number."""

    layers: dict[int, AttentionLayer]

    @model_validator(mode="after")
    def _numbers_of_layers(self) -> "AttentionFacts":
        if not all(1 <= layer <= MOST_LAYERS for layer in self.layers):
            raise ValueError(f"layers are numbered from 1 to {MOST_LAYERS:,}")
        return self


@dataclass(frozen=True)
class Projections:
    """A layer's attention, from its input to queries, keys and values.

    Attributes:
        tensors: `norm.weight`, `norm.bias` [D]; of each part `queries.weight` [W, D], `queries.bias` [W],
            `queries.norm.weight`; and `inverse_frequencies` [R / 2]. Those that a layer lacks are missing.
    """

    facts: AttentionLayer
    tensors: Mapping[str, Tensor]

    @property
    def input_width(self) -> int:
        """The width D of the layer's input."""
        return self.tensors["queries.weight"].shape[1]

    def part(self, name: str, inputs_ND: Tensor, places_N: Tensor) -> Tensor:
        """Return the queries, keys or values [N, W] of some tokens, all heads side by side, in the inputs' type.

        Args:
            inputs_ND: the layer's inputs.
            places_N: each token's place in its row, from 0.
        """
        facts, dtype = self.facts.part(name), inputs_ND.dtype
        tensors = {key: tensor.to(inputs_ND.device, dtype) for key, tensor in self._needed(name).items()}
        if self.facts.norm is not None:
            inputs_ND = self.facts.norm.apply(inputs_ND, tensors["norm.weight"], tensors.get("norm.bias"))
        made_NW = functional.linear(inputs_ND, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
        if facts.norm is not None:
            made_NW = facts.norm.apply(made_NW, tensors[f"{name}.norm.weight"], tensors.get(f"{name}.norm.bias"))
        if facts.scale != 1:
            made_NW = made_NW * facts.scale
        if facts.rotation is not None:
            heads_NHd = made_NW.unflatten(-1, (-1, self.facts.head_width))
            made_NW = rotated(heads_NHd, places_N, tensors["inverse_frequencies"], facts.rotation).flatten(1)
        return made_NW

    def in_type(self, dtype: torch.dtype, device: torch.device) -> "Projections":
        """Return the same on a device, with tensors that need no conversion for inputs of this type."""
        return Projections(self.facts, {name: tensor.to(device, dtype) for name, tensor in self.tensors.items()})

    def with_rotation(self, inverse_frequencies: Tensor, style: RotationStyle) -> "Projections":
        """Return the same with rotated queries and keys."""
        parts = {name: self.facts.part(name).model_copy(update={"rotation": style}) for name in RELATIONS[:2]}
        tensors = {**self.tensors, "inverse_frequencies": inverse_frequencies}
        return Projections(self.facts.model_copy(update=parts), tensors)

    def _needed(self, name: str) -> dict[str, Tensor]:
        shared = ("norm.", "inverse_frequencies")
        return {key: tensor for key, tensor in self.tensors.items() if key.startswith((f"{name}.", *shared))}


def rotated(heads_NHd: Tensor, places_N: Tensor, inverse_frequencies: Tensor, style: RotationStyle) -> Tensor:
    """Return heads [N, H, d] whose first R channels are rotated by each token's place times the inverse frequencies
    [R / 2].

    The angles are computed in float32 or wider, because in half precision those of late tokens would be wrong.
    """
    wide = torch.promote_types(heads_NHd.dtype, torch.float32)
    angles_N1F = (places_N.to(wide)[:, None] * inverse_frequencies.to(wide))[:, None]
    cos_N1F, sin_N1F = angles_N1F.cos().to(heads_NHd.dtype), angles_N1F.sin().to(heads_NHd.dtype)
    count = 2 * len(inverse_frequencies)
    turned, others = heads_NHd[..., :count], heads_NHd[..., count:]
    if style == "halves":
        first, second = turned.chunk(2, -1)
        pieces = [first * cos_N1F - second * sin_N1F, second * cos_N1F + first * sin_N1F]
        return torch.cat([*pieces, others], -1)
    first, second = turned[..., 0::2], turned[..., 1::2]
    pairs = torch.stack([first * cos_N1F - second * sin_N1F, second * cos_N1F + first * sin_N1F], -1)
    return torch.cat([pairs.flatten(-2), others], -1)


def to_file(layers: Mapping[int, Projections]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (the tensors of the file, its facts)."""
    tensors = {f"{layer}.{name}": tensor for layer, made in layers.items() for name, tensor in made.tensors.items()}
    facts = AttentionFacts(layers={layer: made.facts for layer, made in layers.items()})
    return tensors, facts.model_dump(mode="json")


def facts_from_file(facts: Mapping[str, Any]) -> dict[int, AttentionLayer]:
    """Return the facts of each layer. Raises DumpError if they cannot be those of a dump."""
    try:
        return AttentionFacts.model_validate(facts).layers
    except ValidationError as error:
        raise DumpError(
            f"the manifest's facts about the projections of attention are damaged ({in_words(error, AttentionFacts)}); "
            "restore it or dump again."
        ) from None


def from_file(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[int, Projections]:
    """Return the projections of each layer.

    Raises:
        DumpError: for facts that cannot be those of a dump, or that do not fit the tensors.
    """
    found = {}
    for layer, known in facts_from_file(facts).items():
        prefix = f"{layer}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        made = Projections(known, own)
        try:
            with torch.device("meta"):
                inputs_ND, places_N = torch.empty(1, made.input_width), torch.empty(1)
            shapes = Projections(known, {name: tensor.to("meta") for name, tensor in own.items()})
            widths = {name: shapes.part(name, inputs_ND, places_N).shape[1] for name in RELATIONS}
        except (KeyError, RuntimeError) as error:
            raise DumpError(f"the projections of layer {layer} do not fit the manifest ({error}).") from None
        if widths != {name: known.part(name).width for name in RELATIONS}:
            raise DumpError(f"the projections of layer {layer} are {widths} wide, which is not what the manifest says.")
        found[layer] = made
    return found
