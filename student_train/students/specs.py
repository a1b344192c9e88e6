"""How a recipe describes a student: what its [student] section may say, by kind."""

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

# The shapes of XtremeDistilTransformers (Mukherjee, Awadallah & Gao 2021, arXiv 2106.04563); as published, with BERT's
# 30,522 word pieces and 512 positions, they have about 13, 22 and 33 million parameters.
PRESETS: dict[str, dict[str, int]] = {
    "xtremedistil-l6-h256": {"layers": 6, "hidden_size": 256, "heads": 8},
    "xtremedistil-l6-h384": {"layers": 6, "hidden_size": 384, "heads": 12},
    "xtremedistil-l12-h384": {"layers": 12, "hidden_size": 384, "heads": 12},
}

Embeddings = Literal["random", "svd"]


class PretrainedStudent(BaseModel):
    """A checkpoint that AutoModel reads from safetensors, by path or hub id; its head may be new.

    With `keep_layers` it has some of its layers only: their numbers, from 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["pretrained"] = "pretrained"
    path: str
    keep_layers: tuple[PositiveInt, ...] | None = Field(default=None, min_length=1)

    @field_validator("keep_layers")
    @classmethod
    def _ascending(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and any(first >= second for first, second in pairwise(value)):
            raise ValueError("give each layer once, from the bottom up")
        return value


class TransformerStudent(BaseModel):
    """A fresh transformer; `model_type` is any of transformers', by default bert, and llama for causal-lm.

    A `preset` stands for the shape's keys; one that is given besides overrides it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["transformer"] = "transformer"
    preset: str | None = None
    layers: PositiveInt
    hidden_size: PositiveInt
    heads: PositiveInt
    intermediate_size: PositiveInt | None = Field(default=None, description="by default 4 * hidden_size")
    model_type: str | None = None
    dropout: float = Field(default=0.1, ge=0, lt=1, description="for each kind of dropout that the model type has")
    tie_embeddings: bool | None = Field(default=None, description="by default as usual for the model type")
    embeddings: Embeddings = Field(default="random", description="svd: the teacher's, compressed to the width")

    @model_validator(mode="before")
    @classmethod
    def _shape_of_the_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if "trim_vocabulary" in values:
            # A tokenizer.json may give several tokens one id, and is loaded so; but the tokenizers library writes one
            # token an id, so that such a tokenizer, saved again by its user, has lost the others, [UNK] among them.
            raise ValueError(
                "trim_vocabulary is for kind = 'bilstm': the transformers library's models have a row for each id, and "
                "a tokenizer whose rare tokens share one does not survive being saved again"
            )
        preset = values.get("preset")
        if preset is None:
            return values
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ValueError(f"preset = {preset!r} is unknown; the valid ones are {', '.join(PRESETS)}")
        return {**PRESETS[preset], **values}

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} cannot be divided among heads = {self.heads}; "
                "make it a multiple of the heads."
            )
        return self


class BiLSTMStudent(BaseModel):
    """A BiLSTM; `hidden_size` is the width of both directions together.

    With `trim_vocabulary` only tokens that the rows to learn from have at least so often get an embedding; the others
    are read as the tokenizer's unknown token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["bilstm"] = "bilstm"
    embedding_size: PositiveInt
    hidden_size: PositiveInt
    layers: PositiveInt = 1
    dropout: float = Field(default=0.1, ge=0, lt=1)
    embeddings: Embeddings = Field(default="random", description="svd: the teacher's, compressed to embedding_size")
    trim_vocabulary: PositiveInt | None = None

    @model_validator(mode="after")
    def _directions_share_the_width(self) -> Self:
        if self.hidden_size % 2:
            raise ValueError(
                f"hidden_size = {self.hidden_size} cannot be halved between the two directions of a BiLSTM; "
                "make it even."
            )
        return self


StudentSpec = Annotated[PretrainedStudent | TransformerStudent | BiLSTMStudent, Field(discriminator="kind")]
