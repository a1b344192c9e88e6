"""The teacher: loaded, checked to be fit for the task, and run without gradients, dropout or surprises.

Shapes: B rows, L tokens of the longest, D width, V vocabulary or classes, N recorded positions.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from shared.errors import TeacherError, UsageError
from shared.text.tasks import Task, check_tokenizer
from teacher_dump.engines.transformers.attention import Attention
from teacher_dump.engines.transformers.head import VocabularyHead
from teacher_dump.engines.transformers.layers import Layers
from teacher_dump.request import Request
from teacher_dump.workers import worker

transformers.utils.logging.disable_progress_bar()

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

# Of a device's memory; the rest is for batches.
WEIGHTS_SHARE = 0.8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Blueprint:
    """What is known of a teacher before its weights are loaded: enough to check a whole corpus against."""

    config: Any
    tokenizer: PreTrainedTokenizerBase
    label_names: tuple[str, ...] | None


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher.

    Attributes:
        head: the vocabulary head of a language model; None for other tasks.
        trunk: its layers.
        attention: its attention routed through ours; None where that cannot be.
        packs: whether rows may lie one after the other in a batch, without padding.
        pad_token_id: what fills up the rows of a batch: its own where it has one, because some classifiers look for it.
        token_types: whether its inputs say which text of a pair a token belongs to.
        vocabulary: entries of its head (language models) or of its embeddings.
        width: of its hidden states; layers: how many of them follow the embeddings.
    """

    model: PreTrainedModel
    device: torch.device
    dtype: str
    head: VocabularyHead | None
    trunk: Layers
    attention: Attention | None
    packs: bool
    pad_token_id: int
    token_types: bool
    vocabulary: int
    width: int
    layers: int

    @property
    def one_row_a_batch(self) -> bool:
        """Whether padding would be taken for text: classifiers that pool the last token find it by the pad token."""
        return _own_pad_token(self.model) is None and "SequenceClassification" in type(self.model).__name__

    def takes(self, name: str) -> bool:
        """Whether a batch's tensor of this name is one of its inputs."""
        return self.token_types or name != "token_type_ids"


def read_blueprint(request: Request, task: Task) -> Blueprint:
    """The teacher's configuration and tokenizer. Raises TeacherError where there is no model, UsageError where the
    tokenizer cannot serve the task."""
    source = {"revision": request.revision, "trust_remote_code": request.trust_remote_code}
    if not Path(request.teacher).is_dir() and not _HUB_ID.fullmatch(request.teacher):
        raise TeacherError(f"{request.teacher}: there is no such folder; give a model's folder or a hub id.")
    try:
        config = AutoConfig.from_pretrained(request.teacher, **source)
        tokenizer = AutoTokenizer.from_pretrained(request.teacher, **source)
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"{request.teacher}: no model and tokenizer can be loaded from there ({_first_line(error)})."
        ) from None
    check_tokenizer(task, tokenizer)
    if task.classes not in ("labels", "spans"):
        return Blueprint(config, tokenizer, None)
    # Every configuration has label names, generic ones at least; without the head they would be held against the data.
    architectures, head = config.architectures or [], task.auto_class.removeprefix("AutoModel")
    if architectures and not any(name.endswith(head) for name in architectures):
        raise TeacherError(
            f"{request.teacher}: this {', '.join(architectures)} has no head for {task.name}. Fine-tune it first "
            "(distill run) or choose the task it was trained for."
        )
    if task.label_names is not None:
        return Blueprint(config, tokenizer, task.label_names)
    return Blueprint(config, tokenizer, tuple(str(config.id2label[index]) for index in range(config.num_labels)))


def load_teacher(request: Request, task: Task, blueprint: Blueprint) -> Teacher:
    """The teacher with its weights, on its device.

    Raises:
        TeacherError: for a missing head, or a vocabulary smaller than the tokenizer's.
        UsageError: for a device that is not there.
    """
    if request.device_map not in ("none", "auto"):
        raise UsageError(f"--device-map {request.device_map!r}: use none or auto.")
    device = _device(request.device)
    dtype = _dtype(request.dtype, device)
    loader = getattr(transformers, task.auto_class)
    device_map = "auto" if request.device_map == "auto" or _is_too_large(loader, blueprint, dtype, device) else None
    try:
        model, info = loader.from_pretrained(
            request.teacher,
            config=blueprint.config,
            dtype=DTYPES[dtype],
            revision=request.revision,
            trust_remote_code=request.trust_remote_code,
            use_safetensors=True,
            device_map=device_map,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise TeacherError(
            f"{request.teacher}: cannot be loaded as {task.auto_class} ({_first_line(error)})."
        ) from None
    # An encoder's pooler is no part of what is recorded, and many checkpoints come without it.
    missing = sorted(key for key in info["missing_keys"] if task.classes or "pooler" not in key)
    if missing:
        raise TeacherError(
            f"{request.teacher}: it has no weights for {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}, "
            f"which the task {task.name} needs: this checkpoint lacks that head. Fine-tune it first (distill run) or "
            "choose the task it was trained for."
        )
    model.eval().requires_grad_(False)
    if device_map is None:
        model.to(device)
    model.config.use_cache = False  # keys and values would be kept for tokens that are never generated
    config = model.config.get_text_config()
    embeddings = model.get_input_embeddings().weight.shape[0]
    if len(blueprint.tokenizer) > embeddings:
        raise TeacherError(
            f"{request.teacher}: its tokenizer has {len(blueprint.tokenizer):,} entries but the model only "
            f"{embeddings:,}; this tokenizer belongs to another model."
        )
    head = VocabularyHead(model) if task.classes == "vocabulary" else None
    if "next-token" in task.recorded.values() and _looks_ahead(model):
        raise TeacherError(
            f"{request.teacher}: loaded as {type(model).__name__} it sees the tokens that it should predict, so it is "
            "no causal language model; choose masked-lm, or a decoder as the teacher."
        )
    own_pad = _own_pad_token(model)
    attention = Attention.take_over(model)
    return Teacher(
        model,
        model.device,
        dtype,
        head,
        trunk=Layers(model),
        attention=attention,
        packs=attention is not None and attention.packs and "row" not in task.recorded.values(),
        pad_token_id=(blueprint.tokenizer.pad_token_id or 0) if own_pad is None else own_pad,
        token_types=_knows_token_types(config, blueprint.tokenizer),
        vocabulary=head.vocabulary if head else embeddings,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
    )


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over the configuration and every weight, so that two teachers are equal only when they compute alike."""
    config = model.config.to_diff_dict()
    for key in ("transformers_version", "_name_or_path", "dtype", "architectures"):
        config.pop(key, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of everything that decides how text becomes ids."""
    backend: Any = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return hashlib.sha256(backend.to_str().encode()).hexdigest()


def _own_pad_token(model: PreTrainedModel) -> int | None:
    """The pad token that the model itself knows of, if it can be read by it at all (some have -1)."""
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    return pad if pad is not None and 0 <= pad < model.get_input_embeddings().weight.shape[0] else None


def _knows_token_types(config: Any, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Not to be tried out: GPT-2, for one, takes token types for tokens and adds their embeddings."""
    types = getattr(config, "type_vocab_size", None)
    return "token_type_ids" in tokenizer.model_input_names if types is None else types > 1


@torch.inference_mode()
def _looks_ahead(model: PreTrainedModel) -> bool:
    """Whether another last token changes what is said before it."""
    ids_BL = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]], device=model.device)
    logits_BLV = model(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL)).logits.float()
    return not torch.allclose(logits_BLV[0, :-1], logits_BLV[1, :-1], rtol=1e-2, atol=1e-2, equal_nan=True)


def _device(name: str) -> torch.device:
    if name in ("auto", "cuda") and torch.cuda.is_available():
        # Each of several processes on a machine has a device of its own.
        return torch.device("cuda", worker().local_rank % torch.cuda.device_count())
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is available here; use --device cpu or auto.")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r}: unknown device; use auto, cpu, cuda, cuda:1 or mps.") from None


def _is_too_large(loader: Any, blueprint: Blueprint, dtype: str, device: torch.device) -> bool:
    """Whether the weights alone would fill a CUDA device, so that they are spread over all of them."""
    if device.type != "cuda":
        return False
    with torch.device("meta"):
        parameters = loader.from_config(blueprint.config).num_parameters()
    return parameters * DTYPES[dtype].itemsize > WEIGHTS_SHARE * torch.cuda.mem_get_info(device)[0]


def _dtype(name: str, device: torch.device) -> str:
    """auto: bfloat16 where CUDA has it, float16 on older CUDA, float32 elsewhere."""
    if name not in ("auto", *DTYPES):
        raise UsageError(f"--dtype {name!r}: use auto, {', '.join(DTYPES)}.")
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
