"""Tiny teachers of several architectures, and students that start from their weights."""

from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from student_train.students import Needs, TransformerStudent, build_student
from student_train.students.needs import Teacher

VOCABULARY, LAYERS, WIDTH, HEADS, NEURONS = 50, 4, 24, 4, 40
WHOLE = {"layers": LAYERS, "hidden_size": WIDTH, "heads": HEADS, "dropout": 0.0}
INPUT_IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])

_SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": NEURONS,
}
_OTHER_SIZES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": NEURONS},
    "electra": {**_SIZES, "embedding_size": 16},
    "llama": {**_SIZES, "num_key_value_heads": 2},
    "qwen3": {**_SIZES, "num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": True},
    "albert": {**_SIZES, "embedding_size": 16},
    "opt": {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "ffn_dim": NEURONS},
    "gpt2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": NEURONS},
}
_NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
ARCHITECTURES = {
    "bert": "AutoModelForMaskedLM",
    "roberta": "AutoModelForSequenceClassification",
    "distilbert": "AutoModelForMaskedLM",
    "electra": "AutoModelForMaskedLM",
    "llama": "AutoModelForCausalLM",
    "qwen3": "AutoModelForCausalLM",
    "opt": "AutoModelForCausalLM",
}


def teacher_of(model_type: str, auto_class: str | None = None, **config: Any) -> PreTrainedModel:
    """A teacher whose weights, norms and biases too, are far from those of a fresh model."""
    sizes = _OTHER_SIZES.get(model_type, _SIZES)
    made = AutoConfig.for_model(
        model_type, vocab_size=VOCABULARY, **{**_NO_TOKENS, "pad_token_id": 0, **sizes, **config}
    )
    torch.manual_seed(1)
    model = getattr(transformers, auto_class or ARCHITECTURES[model_type]).from_config(made).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return model


def importance_of(teacher: PreTrainedModel, seed: int = 0) -> dict[str, torch.Tensor]:
    config, generator = teacher.config, torch.Generator().manual_seed(seed)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    return {
        "heads": torch.rand(layers, heads, generator=generator),
        "neurons": torch.rand(layers, NEURONS, generator=generator),
        "residual": torch.rand(config.hidden_size, generator=generator),
    }


def needs_of(teacher: PreTrainedModel, auto_class: str, **changes: Any) -> Needs:
    """What a dump of this teacher asks of a student, and gives it."""
    own = {"config": teacher.config.to_dict(), "tensors": teacher.state_dict(), "importance": importance_of(teacher)}
    return Needs(
        auto_class=auto_class,
        vocab_size=VOCABULARY,
        tokenizer_size=VOCABULARY,
        label_names=("a", "b") if auto_class.endswith("Classification") else None,
        pad_token_id=0,
        max_length=12,
        teacher=Teacher(**own | changes),
    )


def student_of(teacher: PreTrainedModel, start: dict[str, Any], auto_class: str = "", **keys: Any) -> PreTrainedModel:
    """The student of a recipe with these keys, whole by default, from a dump that has this teacher's weights."""
    changes = {name: keys.pop(name) for name in ("config", "tensors", "importance") if name in keys}
    spec = TransformerStudent.model_validate({**WHOLE, **keys, "start": start})
    torch.manual_seed(2)
    auto_class = auto_class or ARCHITECTURES[teacher.config.model_type]
    return build_student(spec, needs_of(teacher, auto_class, **changes)).eval()


@torch.no_grad()
def output_of(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=INPUT_IDS)[0]
