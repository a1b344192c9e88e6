"""Signals: what is recorded from a teacher, where in it, per what, and by which codec.

A signal is an entry of the manifest, and says everything that a reader needs. The table of sites is for those who ask
for signals, and for messages: adding a site is one line here, and one for each engine that can give it.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, FieldSerializationInfo, field_serializer, model_validator

from shared.dump.codecs import AnyCodec, Codec, Column, DistributionCodec
from shared.registry import Registry

# What there is one of for each token of a row, for each of its recorded positions, or for the row.
Per = Literal["token", "position", "row"]

DISTRIBUTION, HIDDEN = "distribution", "hidden"
# What attention works with in a layer, from which a student's attention relations are made (MiniLMv2).
RELATIONS = ("queries", "keys", "values")


@dataclass(frozen=True)
class Site:
    """A place in a teacher at which something can be recorded.

    Attributes:
        words: what is there, for people.
        holds: distributions over classes or a vocabulary, or vectors.
        per: what there is one of it for.
        first_layer: the number of the lowest layer that has it, as transformers counts its `hidden_states` (0 is the
            embeddings' output, n that of the n-th layer); None where it is no layer's.
    """

    words: str
    holds: Literal["distributions", "vectors"] = "vectors"
    per: Per = "token"
    first_layer: int | None = None


SITES: Registry[Site] = Registry(
    "signal",
    {
        DISTRIBUTION: Site("distributions over classes or the vocabulary", "distributions", "position"),
        HIDDEN: Site("hidden states", first_layer=0),
        "queries": Site("queries of attention", first_layer=1),
        "keys": Site("keys of attention", first_layer=1),
        "values": Site("values of attention", first_layer=1),
    },
)


class SignalKey(NamedTuple):
    """By what a signal is known: its site, and where that is a layer's, which."""

    site: str
    layer: int | None = None

    @property
    def name(self) -> str:
        """What a signal of it is called: "distribution", "hidden.6"."""
        return self.site if self.layer is None else f"{self.site}.{self.layer}"

    def __str__(self) -> str:
        return self.name


class Signal(BaseModel):
    """One thing that a dump records.

    In the manifest it is `{"site": "hidden", "layer": 6, "per": "token", "codec": {"codec": "int8", ...}}`: the codec's
    `name`, which heads the names of its columns, follows from site and layer, and is not written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str = Field(min_length=1)
    layer: int | None = Field(default=None, ge=0)
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
            raise ValueError(f"the codec of the signal {self.name!r} is that of {self.codec.name!r}")
        return self

    @field_serializer("codec")
    def _without_name(self, codec: Codec, info: FieldSerializationInfo) -> dict[str, Any]:
        return codec.model_dump(mode=info.mode, exclude={"name"})

    @classmethod
    def of(cls, site: str, layer: int | None, codec: Codec) -> "Signal":
        """The signal of a site of the table. Raises UsageError for one that it lacks."""
        return cls(site=site, layer=layer, per=SITES.named(site).per, codec=codec)

    @property
    def name(self) -> str:
        """The site, and where it is a layer's its number after a dot: unique in a dump."""
        return self.key.name

    @property
    def key(self) -> SignalKey:
        """Its site and layer."""
        return SignalKey(self.site, self.layer)

    @property
    def is_distribution(self) -> bool:
        """Whether it is distributions, and no vectors."""
        return isinstance(self.codec, DistributionCodec)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its Parquet columns."""
        return self.codec.columns

    def describe(self) -> str:
        """A few words for people."""
        if self.is_distribution:
            return f"{self.name} ({self.codec.describe()})"
        words = SITES[self.site].words if self.site in SITES else self.site
        return (
            f"{self.name} ({words}{'' if self.layer is None else f' of layer {self.layer}'}: {self.codec.describe()})"
        )

    def with_codec(self, codec: Codec) -> "Signal":
        """The same signal by another codec."""
        return self.model_copy(update={"codec": codec})
