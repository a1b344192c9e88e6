"""From a recipe's description of a student to the model that is trained.

Three kinds: a checkpoint, a fresh transformer of given depth and width, and a BiLSTM. Whatever a student could not do
(a head it lacks, labels in another order, ids beyond its embeddings) is refused here, before the first step.
"""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel

from shared.errors import RecipeError
from student_train.students.bilstm import BiLSTMConfig, TrimmedEmbedding
from student_train.students.depth import keep_layers
from student_train.students.embeddings import begin_embeddings
from student_train.students.specs import BiLSTMStudent, PretrainedStudent, TransformerStudent

# Each Auto class, and which model it makes of which configuration.
AUTO_CLASSES: dict[str, tuple[Any, Any]] = {
    "AutoModel": (transformers.AutoModel, transformers.MODEL_MAPPING),
    "AutoModelForCausalLM": (transformers.AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
    "AutoModelForMaskedLM": (transformers.AutoModelForMaskedLM, transformers.MODEL_FOR_MASKED_LM_MAPPING),
    "AutoModelForSequenceClassification": (
        transformers.AutoModelForSequenceClassification,
        transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    ),
    "AutoModelForTokenClassification": (
        transformers.AutoModelForTokenClassification,
        transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    ),
    "AutoModelForQuestionAnswering": (
        transformers.AutoModelForQuestionAnswering,
        transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    ),
}

DEFAULT_MODEL_TYPE = "bert"
DEFAULT_MODEL_TYPES = {"AutoModelForCausalLM": "llama"}

# What a task asks of a configuration that has the field: without it, BERT as a causal LM would see the answer.
TASK_FIELDS: dict[str, dict[str, Any]] = {"AutoModelForCausalLM": {"is_decoder": True}}

# Architectures that number positions from pad_token_id + 1, and so need as many more of them.
POSITIONS_AFTER_PADDING = {"camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta"}

# The inner width of the feed-forward layer has no one name; the first that a configuration has is the one.
INTERMEDIATE_SIZE_NAMES = ("intermediate_size", "hidden_dim", "ffn_dim", "n_inner", "d_ff")

# How the modules are called that look up learned positions, and end where these end.
POSITION_MODULES = ("position_embeddings", "embed_positions", "wpe")


def build_student(
    spec: PretrainedStudent | TransformerStudent | BiLSTMStudent,
    *,
    auto_class: str,
    vocab_size: int,
    tokenizer_size: int,
    label_names: tuple[str, ...] | None,
    pad_token_id: int | None,
    max_length: int,
    kept_ids_K: Tensor | None = None,
    unknown_id: int | None = None,
    word_embeddings_VD: Tensor | None = None,
) -> PreTrainedModel:
    """The student that `spec` describes, in float32, its new weights drawn from torch's global generator.

    `auto_class` names the head ("AutoModelForSequenceClassification"). A fresh student has `vocab_size` embeddings;
    any student must have at least the `tokenizer_size` ids that the tokenizer gives, and read `max_length` tokens.
    `label_names` are the classes in order, None for a task without.

    A BiLSTM has rows for `kept_ids_K` alone where they are given, and takes every other id for `unknown_id`. A fresh
    student's word embeddings begin from the teacher's, where these are given.
    """
    if auto_class not in AUTO_CLASSES:
        raise RecipeError(f"No student can be built as {auto_class!r}; the heads are {', '.join(AUTO_CLASSES)}.")
    fresh = {"vocab_size": vocab_size, "pad_token_id": pad_token_id, **_label_values(label_names)}
    match spec:
        case PretrainedStudent():
            model = _load_pretrained(spec.path, auto_class, label_names)
            if spec.keep_layers is not None:
                keep_layers(model, spec.keep_layers)
        case TransformerStudent():
            model = _build_fresh(_transformer_config(spec, auto_class, max_length, fresh), auto_class)
        case BiLSTMStudent():
            shape = spec.model_dump(include={"embedding_size", "hidden_size", "dropout"})
            rows = None if kept_ids_K is None else len(kept_ids_K)
            config = BiLSTMConfig(num_hidden_layers=spec.layers, embedding_rows=rows, **shape, **fresh)
            model = _build_fresh(config, auto_class)
    table = model.get_input_embeddings()
    if kept_ids_K is not None:
        assert unknown_id is not None
        table.keep(kept_ids_K, unknown_id)
    if word_embeddings_VD is not None:
        begin_embeddings(table, word_embeddings_VD, kept_ids_K)
    if getattr(model.config, "pad_token_id", None) is None:
        # Decoders often come without one, and as classifiers look for the last token before the padding.
        model.config.pad_token_id = pad_token_id
    _check_reach(model, tokenizer_size, max_length)
    return model


def _load_pretrained(path: str, auto_class: str, label_names: tuple[str, ...] | None) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RecipeError(f"The student {path} has no configuration that transformers can read: {error}") from error
    _check_has_head(config, auto_class)
    if label_names is not None:
        if _head_is_trained(config, auto_class):
            _check_same_labels(path, config, label_names)
        for name, value in _label_values(label_names).items():
            setattr(config, name, value)
    for name, value in TASK_FIELDS.get(auto_class, {}).items():
        if name in _field_names(type(config)):
            setattr(config, name, value)
    try:
        model: PreTrainedModel = AUTO_CLASSES[auto_class][0].from_pretrained(
            path,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            # Training keeps its weights in float32, whatever the checkpoint was saved in.
            dtype=torch.float32,
            # Only a head of other labels can mismatch, as the rest is shaped by the checkpoint's own configuration.
            ignore_mismatched_sizes=label_names is not None,
        )
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"The student {path} has no safetensors weights that can be read: {error}") from error
    return model


def _transformer_config(
    spec: TransformerStudent, auto_class: str, max_length: int, fresh: dict[str, Any]
) -> PretrainedConfig:
    """The configuration of the model type, filled in by the names that this architecture has for a transformer's shape.

    `fresh` are the values that every new student has, whatever its kind.
    """
    model_type = spec.model_type or DEFAULT_MODEL_TYPES.get(auto_class, DEFAULT_MODEL_TYPE)
    if model_type not in CONFIG_MAPPING:
        raise RecipeError(f"transformers knows no model_type {model_type!r}; take one like 'bert' or 'llama'.")
    config_class = CONFIG_MAPPING[model_type]
    names = _field_names(config_class)
    positions = max_length
    if model_type in POSITIONS_AFTER_PADDING:
        if fresh["pad_token_id"] is None:
            raise RecipeError(f"A {model_type} student needs a padding token, and the tokenizer has none.")
        positions += fresh["pad_token_id"] + 1

    intermediate_size_name = next((name for name in INTERMEDIATE_SIZE_NAMES if name in names), "intermediate_size")
    required = {
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        intermediate_size_name: spec.intermediate_size or 4 * spec.hidden_size,
        "max_position_embeddings": positions,
    }
    if spec.tie_embeddings is not None:
        required["tie_word_embeddings"] = spec.tie_embeddings
    required = {config_class.attribute_map.get(name, name): value for name, value in required.items()}
    # A configuration takes any keyword in silence; a shape that it does not have would be lost.
    if unknown := required.keys() - names:
        raise RecipeError(
            f"The configuration of model_type {model_type!r} has no {', '.join(sorted(unknown))}, so a student of the "
            "given shape cannot be built; choose another model_type."
        )

    optional = {
        "num_key_value_heads": spec.heads,
        "head_dim": spec.hidden_size // spec.heads,
        # The defaults are the ids of some other vocabulary.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        **{name: spec.dropout for name in names if "dropout" in name or name.endswith("_pdrop")},
        **TASK_FIELDS.get(auto_class, {}),
    }
    try:
        return AutoConfig.for_model(
            model_type, **required, **{name: optional[name] for name in optional if name in names}, **fresh
        )
    except StrictDataclassError as error:
        raise RecipeError(f"A student of model_type {model_type!r} cannot have the given shape: {error}") from error


def _build_fresh(config: PretrainedConfig, auto_class: str) -> PreTrainedModel:
    _check_has_head(config, auto_class)
    model: PreTrainedModel = AUTO_CLASSES[auto_class][0].from_config(config)
    return model


def _check_has_head(config: PretrainedConfig, auto_class: str) -> None:
    if type(config) not in AUTO_CLASSES[auto_class][1]:
        raise RecipeError(
            f"A student of model type {config.model_type!r} has no head for {auto_class}; choose another kind of "
            "student, or another task."
        )


def _head_is_trained(config: PretrainedConfig, auto_class: str) -> bool:
    """Whether the checkpoint was saved by the class that `auto_class` makes of it."""
    models = AUTO_CLASSES[auto_class][1][type(config)]
    names = {model.__name__ for model in (models if isinstance(models, (list, tuple)) else [models])}
    return not names.isdisjoint(config.architectures or ())


def _check_same_labels(path: str, config: PretrainedConfig, label_names: tuple[str, ...]) -> None:
    own_names = tuple(str(name) for _, name in sorted((config.id2label or {}).items()))
    is_generic = all(re.fullmatch(r"LABEL_\d+", name) for name in own_names)
    if not is_generic and own_names != label_names:
        raise RecipeError(
            f"The student {path} was trained for the labels {', '.join(own_names)}, and the dump has "
            f"{', '.join(label_names)}: names and order must agree. Start from a checkpoint without this head, or "
            "rename its labels."
        )


def _check_reach(model: PreTrainedModel, tokenizer_size: int, max_length: int) -> None:
    """Refuses a model that would index past its embeddings, which a GPU reports as a bare assertion."""
    # The head of a language model is as wide as its embeddings: both are the configuration's vocab_size.
    table = model.get_input_embeddings()
    embeddings = len(table.row_of_id) if isinstance(table, TrimmedEmbedding) else int(table.weight.shape[0])
    if embeddings < tokenizer_size:
        raise RecipeError(
            f"The student's vocabulary has {embeddings} ids, and the tokenizer gives {tokenizer_size}; choose a "
            "student that was made for the dump's tokenizer."
        )
    for name, module in model.named_modules():
        if name.endswith(POSITION_MODULES) and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            if module.num_embeddings - first < max_length:
                raise RecipeError(
                    f"The student reads at most {module.num_embeddings - first} tokens, and the dump's rows have up "
                    f"to {max_length}; choose a student with more positions, or dump with a smaller --max-length."
                )


def _field_names(config_class: type[PretrainedConfig]) -> set[str]:
    return {field.name for field in fields(config_class)}


def _label_values(label_names: tuple[str, ...] | None) -> dict[str, Any]:
    if label_names is None:
        return {}
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: position for position, name in enumerate(label_names)},
    }
