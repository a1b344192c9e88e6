"""A fresh transformer of a given depth and width, of any model type of the transformers library."""

from dataclasses import fields
from typing import Any, Literal, Self

from huggingface_hub.errors import StrictDataclassError
from pydantic import Field, model_validator
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel

from shared.errors import RecipeError
from shared.numbers import Count
from student_train.students.base import Student
from student_train.students.heads import field_names, fresh_model, fresh_values, task_values
from student_train.students.initialisers import INITIALISERS, Embeddings, Initialiser, Random, Start
from student_train.students.initialisers.from_teacher import Wanted, configuration
from student_train.students.needs import Needs
from student_train.students.sizes import intermediate_size_name

# The shapes of XtremeDistilTransformers (Mukherjee, Awadallah & Gao 2021, arXiv 2106.04563). With BERT's 30,522 word
# pieces and 512 positions, as published, they have about 13, 22 and 33 million parameters.
PRESETS: dict[str, dict[str, int]] = {
    "xtremedistil-l6-h256": {"layers": 6, "hidden_size": 256, "heads": 8},
    "xtremedistil-l6-h384": {"layers": 6, "hidden_size": 384, "heads": 12},
    "xtremedistil-l12-h384": {"layers": 12, "hidden_size": 384, "heads": 12},
}

DEFAULT_MODEL_TYPE = "bert"
DEFAULT_MODEL_TYPES = {"AutoModelForCausalLM": "llama"}

# Architectures that number positions from pad_token_id + 1, and therefore need this number of additional positions.
POSITIONS_AFTER_PADDING = {"camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta"}


class TransformerStudent(Student):
    """A fresh transformer; `model_type` is any of transformers, by default bert, for causal-lm llama.

    A `preset` sets `layers`, `hidden_size` and `heads`; a key that is given too takes precedence. `start` says what its
    weights start from: random numbers, or those of the teacher, whose type the student then has.
    """

    kind: Literal["transformer"] = "transformer"
    preset: str | None = None
    layers: Count
    hidden_size: Count
    heads: Count
    intermediate_size: Count | None = Field(
        default=None, description="by default 4 * hidden_size, or in the teacher's ratio"
    )
    max_positions: Count | None = Field(
        default=None, description="the longest row that it can read; by default the longest that the source may have"
    )
    model_type: str | None = None
    dropout: float = Field(default=0.1, ge=0, lt=1, description="for each kind of dropout that the model type has")
    tie_embeddings: bool | None = Field(default=None, description="by default as usual for the model type")
    embeddings: Embeddings = Field(default="random", description="svd: the teacher's, compressed to the width")
    start: Start = Field(default_factory=Random, description="random, or what is taken from the teacher's weights")

    @model_validator(mode="before")
    @classmethod
    def _shape_of_the_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if "trim_vocabulary" in values:
            # A tokenizer.json that gives several tokens the same id can be loaded. But the tokenizers library saves one
            # token per id, so saving such a tokenizer again loses the other tokens, including [UNK].
            raise ValueError(
                "trim_vocabulary is for kind = 'bilstm': models of transformers have a row for each id, and "
                "a tokenizer whose rare tokens share an id loses them when it is saved again"
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
                "make it a multiple of the heads"
            )
        return self

    @model_validator(mode="after")
    def _one_start_of_the_embeddings(self) -> Self:
        if self.start.needs_teacher and self.embeddings != "random":
            raise ValueError(
                f"embeddings = {self.embeddings!r}: with start.kind = {self.start.kind!r} the word embeddings start "
                "from the teacher's weights like all others; give one of the two"
            )
        return self

    @model_validator(mode="after")
    def _one_number_of_positions(self) -> Self:
        if self.start.needs_teacher and self.max_positions is not None:
            raise ValueError(
                f"max_positions = {self.max_positions}: with start.kind = {self.start.kind!r} the student has as many "
                "positions as its teacher; leave it out"
            )
        return self

    @property
    def initialisers(self) -> tuple[Initialiser, ...]:
        return self.start, INITIALISERS.named(self.embeddings)(kind=self.embeddings)

    def build(self, needs: Needs) -> PreTrainedModel:
        if not self.start.needs_teacher:
            return fresh_model(_configuration(self, needs), needs.auto_class)
        wanted = Wanted(**self.model_dump(include={field.name for field in fields(Wanted)}))
        return fresh_model(configuration(wanted, needs, self.start.teacher_layers), needs.auto_class)


def _configuration(spec: TransformerStudent, needs: Needs) -> PretrainedConfig:
    """The configuration of the model type, with the shape under the names that this architecture uses."""
    model_type = spec.model_type or DEFAULT_MODEL_TYPES.get(needs.auto_class, DEFAULT_MODEL_TYPE)
    if model_type not in CONFIG_MAPPING:
        raise RecipeError(f"transformers has no model_type {model_type!r}; use one such as 'bert' or 'llama'.")
    config_class = CONFIG_MAPPING[model_type]
    names = field_names(config_class)
    positions = spec.max_positions or needs.max_length
    if model_type in POSITIONS_AFTER_PADDING:
        if needs.pad_token_id is None:
            raise RecipeError(f"A {model_type} student needs a padding token, but the tokenizer has none.")
        positions += needs.pad_token_id + 1

    required = {
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        intermediate_size_name(config_class): spec.intermediate_size or 4 * spec.hidden_size,
        "max_position_embeddings": positions,
    }
    if spec.tie_embeddings is not None:
        required["tie_word_embeddings"] = spec.tie_embeddings
    required = {config_class.attribute_map.get(name, name): value for name, value in required.items()}
    # A configuration accepts any keyword silently, so a value without a field would be ignored.
    if unknown := required.keys() - names:
        raise RecipeError(
            f"The configuration of model_type {model_type!r} has no {', '.join(sorted(unknown))}, so a student of the "
            "given shape cannot be built; choose another model_type."
        )

    optional = {
        "num_key_value_heads": spec.heads,
        "head_dim": spec.hidden_size // spec.heads,
        # The defaults are ids of another vocabulary.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        **{name: spec.dropout for name in names if "dropout" in name or name.endswith("_pdrop")},
        **task_values(needs.auto_class),
    }
    try:
        return AutoConfig.for_model(
            model_type,
            **required,
            **{name: optional[name] for name in optional if name in names},
            **fresh_values(needs),
        )
    except StrictDataclassError as error:
        raise RecipeError(f"A student of model_type {model_type!r} cannot have the given shape: {error}") from error
