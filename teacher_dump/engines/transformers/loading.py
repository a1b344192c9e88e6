"""Describe and load a model of transformers, and check that it fits the task.

Shapes: B rows, L tokens of the longest, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from shared.errors import TeacherError, UsageError
from shared.models.loading import load_config, load_model, load_tokenizer, parameters_of
from shared.models.sentence_folder import read_sentence_folder
from shared.text.tasks import Task
from teacher_dump.engines.base import TeacherDescription
from teacher_dump.engines.devices import DTYPES, device_named
from teacher_dump.engines.pooling import asked_pooling, follows_folder
from teacher_dump.engines.probe import looks_ahead
from teacher_dump.engines.transformers.attention import Attention
from teacher_dump.engines.transformers.engine import TransformersEngine
from teacher_dump.engines.transformers.head import VocabularyHead
from teacher_dump.engines.transformers.layers import Layers
from teacher_dump.engines.transformers.teacher import Teacher, own_pad_token
from teacher_dump.request import Request

# The largest share of a device's memory for weights; the rest is for batches.
WEIGHTS_SHARE = 0.8


@dataclass(frozen=True)
class Description(TeacherDescription):
    """A model's configuration and tokenizer."""

    name: str
    request: Request
    task: Task
    config: Any

    def load(self) -> TransformersEngine:
        """Load the model and return its engine. Raises the errors of `load_teacher`."""
        return TransformersEngine(self.name, load_teacher(self))


def describe(request: Request, task: Task) -> Description:
    """The description of a folder or a hub id, from its configuration and tokenizer.

    Raises:
        TeacherError: if there is no model, or the model has no head for the task.
        UsageError: if the tokenizer does not fit the task.
    """
    name = request.teacher
    if not isinstance(name, str):
        raise UsageError(f"the engine 'transformers' loads a folder or a hub id, but not a {type(name).__name__}.")
    config = load_config(name, TeacherError, request.trust_remote_code, request.revision)
    tokenizer = load_tokenizer(name, TeacherError, request.trust_remote_code, request.revision)
    task.check_tokenizer(tokenizer)
    # Every configuration has label names, at least generic ones: without a head they would be compared with the data.
    architectures = config.architectures or []
    if task.has_labels and architectures and not task.fits(architectures):
        raise TeacherError(
            f"{name}: this {', '.join(architectures)} has no head for {task.name}. Fine-tune it first (distill run) or "
            "choose the task it was trained for."
        )
    longest_row = getattr(config.get_text_config(), "max_position_embeddings", None)
    folder = None
    if follows_folder(request, task):
        folder = read_sentence_folder(name, TeacherError, request.revision)
        if folder is not None:
            folder.check_tokenizer(name, tokenizer, TeacherError)
    return Description(
        tokenizer,
        task.label_names_of(config),
        longest_row,
        name,
        request,
        task,
        config,
        pooling=asked_pooling(request, task, folder),
        cut_at=None if folder is None else folder.max_length,
    )


def load_teacher(description: Description) -> Teacher:
    """Load a model onto its device, and check that it fits the task.

    Raises:
        TeacherError: for a missing head, or a vocabulary smaller than the tokenizer's.
        UsageError: for a device that is not available.
    """
    name, request, task, config = description.name, description.request, description.task, description.config
    if request.device_map not in ("none", "auto"):
        raise UsageError(f"--device-map {request.device_map!r}: use none or auto.")
    device = device_named(request.device)
    dtype = _dtype(request.dtype, device)
    is_spread = request.device_map == "auto" or _is_too_large(description, dtype, device)
    device_map = "auto" if is_spread else None
    model, missing = load_model(
        task.auto_class,
        name,
        config,
        TeacherError,
        request.trust_remote_code,
        dtype=DTYPES[dtype],
        revision=request.revision,
        device_map=device_map,
    )
    missing = [key for key in missing if not any(optional in key for optional in task.optional_weights)]
    if missing:
        raise TeacherError(
            f"{name}: it has no weights for {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}, "
            f"which the task {task.name} needs: this checkpoint lacks that head. Fine-tune it first (distill run) or "
            "choose the task it was trained for."
        )
    model.eval().requires_grad_(False)
    if device_map is None:
        model.to(device)
    model.config.use_cache = False  # keys and values would be kept for tokens that are never generated
    text_config = model.config.get_text_config()
    embeddings = model.get_input_embeddings().weight.shape[0]
    if len(description.tokenizer) > embeddings:
        raise TeacherError(
            f"{name}: its tokenizer has {len(description.tokenizer):,} entries but the model only "
            f"{embeddings:,}; this tokenizer belongs to another model."
        )
    head = VocabularyHead(model) if task.predicts_vocabulary else None
    if task.is_causal and looks_ahead(lambda inputs: task.logits_of(model(**inputs)), model.device):
        raise TeacherError(
            f"{name}: loaded as {type(model).__name__} it sees the tokens that it should predict, so it is "
            "not a causal language model; choose masked-lm, or a decoder as the teacher."
        )
    own_pad = own_pad_token(model)
    attention = Attention.take_over(model)
    return Teacher(
        task,
        model,
        model.device,
        dtype,
        head,
        trunk=Layers(model),
        attention=attention,
        packs=attention is not None and attention.packs and task.packs,
        pad_token_id=(description.tokenizer.pad_token_id or 0) if own_pad is None else own_pad,
        token_types=_knows_token_types(text_config, description.tokenizer),
        vocabulary=head.vocabulary if head else embeddings,
        width=text_config.hidden_size,
        layers=text_config.num_hidden_layers,
        pooling=description.pooling,
    )


def _knows_token_types(config: Any, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model takes token types.

    A trial would not tell: GPT-2, for example, accepts token types but takes them for tokens and adds their embeddings.
    """
    types = getattr(config, "type_vocab_size", None)
    return "token_type_ids" in tokenizer.model_input_names if types is None else types > 1


def _is_too_large(description: Description, dtype: str, device: torch.device) -> bool:
    """Whether the weights would take more than their share of a CUDA device, and must be spread over several."""
    if device.type != "cuda":
        return False
    auto_class, trusted = description.task.auto_class, description.request.trust_remote_code
    parameters = parameters_of(auto_class, description.config, trusted)
    return parameters * DTYPES[dtype].itemsize > WEIGHTS_SHARE * torch.cuda.mem_get_info(device)[0]


def _dtype(name: str, device: torch.device) -> str:
    """The name of the type. auto is bfloat16 if the CUDA device supports it, float16 on older ones, else float32."""
    if name not in ("auto", *DTYPES):
        raise UsageError(f"--dtype {name!r}: use auto, {', '.join(DTYPES)}.")
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
