"""The sizes of a transformer, whatever its configuration calls them."""

from dataclasses import dataclass
from typing import Any, Self

from transformers import PretrainedConfig

from shared.errors import RecipeError
from student_train.students.heads import field_names

# The inner width of the feed-forward layer has different names; the first one that a configuration has is used.
INTERMEDIATE_SIZE_NAMES = ("intermediate_size", "hidden_dim", "ffn_dim", "n_inner", "d_ff")
# Where word embeddings may be narrower than the layers, a projection widens them, unless both have the same width.
EMBEDDING_SIZE_NAMES = ("embedding_size", "word_embed_proj_dim")


def intermediate_size_name(config_class: type[PretrainedConfig]) -> str:
    """Return what this class of configurations calls the inner width of the feed-forward layer."""
    names = field_names(config_class)
    return next((name for name in INTERMEDIATE_SIZE_NAMES if name in names), INTERMEDIATE_SIZE_NAMES[0])


@dataclass(frozen=True)
class Sizes:
    """The numbers from which the shapes of a transformer's matrices follow.

    Attributes:
        width: of the hidden states, which all layers read and write (the residual stream).
        heads, key_heads: heads of the queries, and of the keys and values; fewer of the latter are grouped heads.
        head_size: width of one head.
        neurons: inner width of the feed-forward layer.
    """

    layers: int
    width: int
    heads: int
    key_heads: int
    head_size: int
    neurons: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        """Return the sizes in a configuration. Raises RecipeError if it does not have them all."""
        heads = getattr(config, "num_attention_heads", None)
        sizes: dict[str, Any] = {
            "layers": getattr(config, "num_hidden_layers", None),
            "width": getattr(config, "hidden_size", None),
            "heads": heads,
            "key_heads": getattr(config, "num_key_value_heads", None) or heads,
            "neurons": getattr(config, intermediate_size_name(type(config)), None),
        }
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise RecipeError(
                    f"student.start: a model of type {config.model_type!r} does not say its {name} in one number, so a "
                    "student cannot start from its weights; leave the key out."
                )
        if heads % sizes["key_heads"]:
            raise RecipeError(
                f"student.start: the teacher's {heads} heads cannot be divided among its {sizes['key_heads']} heads of "
                "keys and values, so a student cannot start from its weights; leave the key out."
            )
        head_size = getattr(config, "head_dim", None) or sizes["width"] // sizes["heads"]
        return cls(**sizes, head_size=head_size)
