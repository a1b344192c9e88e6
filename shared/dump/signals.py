"""Signals: what is recorded from a teacher, at which site and layer, per token, position or row, and with which codec.

A signal is an entry of the manifest, with everything that a reader needs. The table of sites is used when signals are
requested and for messages. A new site is one line here, and one in each engine that can record it.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, FieldSerializationInfo, field_serializer, model_validator

from shared.dump.codecs import AnyCodec, Codec, Column, DistributionCodec
from shared.registry import Registry

# Whether a signal has one entry for each token of a row, for each of its recorded positions, or for the row.
Per = Literal["token", "position", "row"]

# More layers than any model has.
MOST_LAYERS = 10_000

DISTRIBUTION, HIDDEN, MIXTURES = "distribution", "hidden", "mixtures"
# The embedding of a row; the manifest's `pooling` says how it is made.
EMBEDDING = "embedding"
# What a layer's attention works on, from which attention relations are computed (MiniLMv2).
RELATIONS = ("queries", "keys", "values")
# The input of a layer, from which its queries, keys and values are computed (dump/weights/projections.py). It is the
# hidden state of the layer below.
ATTENTION_INPUTS = "attention_inputs"


@dataclass(frozen=True)
class Site:
    """A site of a teacher: something that can be recorded.

    Attributes:
        words: what it is, as text for messages and reports.
        holds: whether it gives distributions, vectors, or logits for mixtures of rows.
        per: whether it has one entry per token, position or row.
        first_layer: number of the lowest layer that has it, counted like transformers' `hidden_states` (0 is the output
            of the embeddings, n that of the n-th layer); None if it does not belong to a layer.
    """

    words: str
    holds: Literal["distributions", "vectors", "mixtures"] = "vectors"
    per: Per = "token"
    first_layer: int | None = None


SITES: Registry[Site] = Registry(
    "signal",
    {
        DISTRIBUTION: Site("distributions over classes or the vocabulary", "distributions", "position"),
        HIDDEN: Site("hidden states", first_layer=0),
        EMBEDDING: Site("embeddings of rows", per="row"),
        "queries": Site("queries of attention", first_layer=1),
        "keys": Site("keys of attention", first_layer=1),
        "values": Site("values of attention", first_layer=1),
        MIXTURES: Site("logits for rows mixed with other rows", "mixtures", "row"),
        ATTENTION_INPUTS: Site("inputs of attention", first_layer=1),
    },
)


class SignalKey(NamedTuple):
    """The key of a signal: its site, and the layer if the site belongs to one."""

    site: str
    layer: int | None = None

    @property
    def name(self) -> str:
        """The name of the signal: "distribution", "hidden.6"."""
        return self.site if self.layer is None else f"{self.site}.{self.layer}"

    def __str__(self) -> str:
        return self.name


class Signal(BaseModel):
    """One thing that a dump records.

    In the manifest it is `{"site": "hidden", "layer": 6, "per": "token", "codec": {"codec": "int8", ...}}`. The codec's
    `name`, with which the names of its columns begin, is not written, because it follows from site and layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    site: str = Field(min_length=1)
    layer: int | None = Field(default=None, ge=0, le=MOST_LAYERS)
    per: Per
    codec: AnyCodec

    @model_validator(mode="before")
    @classmethod
    def _name_the_codec(cls, content: Any) -> Any:
        if isinstance(content, dict) and isinstance(content.get("codec"), dict):
            name = SignalKey(content.get("site", ""), content.get("layer")).name
            return {**content, "codec": {"name": name, **content["codec"]}}
        return content

    @model_validator(mode="after")
    def _the_codec_has_its_name(self) -> Self:
        if self.codec.name != self.name:
            raise ValueError(f"the codec of the signal {self.name!r} has the name {self.codec.name!r}")
        return self

    @field_serializer("codec")
    def _without_name(self, codec: Codec, info: FieldSerializationInfo) -> dict[str, Any]:
        return codec.model_dump(mode=info.mode, exclude={"name"})

    @classmethod
    def of(cls, site: str, layer: int | None, codec: Codec) -> "Signal":
        """Return the signal of a site. Raises UsageError if the table of sites lacks it."""
        return cls(site=site, layer=layer, per=SITES.named(site).per, codec=codec)

    @property
    def name(self) -> str:
        """The site and, if it belongs to a layer, a dot and the layer's number; unique in a dump."""
        return self.key.name

    @property
    def key(self) -> SignalKey:
        """The site and layer."""
        return SignalKey(self.site, self.layer)

    @property
    def is_distribution(self) -> bool:
        """Whether the signal is distributions and not vectors."""
        return isinstance(self.codec, DistributionCodec)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The signal's Parquet columns."""
        return self.codec.columns

    def describe(self) -> str:
        """Describe the signal in a few words, for messages and reports."""
        if self.is_distribution:
            return f"{self.name} ({self.codec.describe()})"
        words = SITES[self.site].words if self.site in SITES else self.site
        return (
            f"{self.name} ({words}{'' if self.layer is None else f' of layer {self.layer}'}: {self.codec.describe()})"
        )

    def with_codec(self, codec: Codec) -> "Signal":
        """Return the same signal with another codec."""
        return self.model_copy(update={"codec": codec})
