"""Scores of any model folder: the task's metrics on held-out files, agreement with a dumped teacher, size, latency."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from shared.errors import LecternError, RecipeError, UsageError
from shared.text.groups import GroupScores, score_groups
from shared.text.metrics import Predictions
from shared.text.questions import SPAN_LABELS
from shared.text.tasks import TASKS, Task, task_named
from shared.text.tokenized import DEFAULT_STRIDE
from student_train.data.batches import Batch, in_order
from student_train.data.sources import OFFSETS, DumpSource, Source, TextSource, check_same_tokenizer, load_tokenizer
from student_train.data.spans import PLACES, best_answers
from student_train.forward.head import plain_head
from student_train.losses import formulas
from student_train.losses.base import Heard, Said
from student_train.losses.logits import KLLoss
from student_train.recipe.recipe import ScoredColumns
from student_train.scoring.latency import first_batches, latencies
from student_train.scoring.runtimes import MODEL_FILE, OnnxRuntime, Runtime, TorchRuntime, difference, has_onnxruntime
from student_train.training.trainer import heard_about, said_about

transformers.utils.logging.disable_progress_bar()

EVAL_ROWS = 32
DEFAULT_LENGTH = 512
LATENCY_SECONDS = 1.0  # for each runtime and size of batch
# Architectures whose names do not end in their Auto class's.
_OTHER_NAMES = {"LMHeadModel": "causal-lm"}


@dataclass(frozen=True)
class Report:
    """Scores of one model.

    Attributes:
        rows: of the data; of questions, windows of their contexts.
        questions: how many questions these are of, where they are of any.
        metrics: the task's, the main one first.
        agreement: share of a dump's recorded positions where its first choice is the teacher's; None without a dump.
        divergence: mean KL(teacher || student) there, in nats.
        groups: the scores of each group of rows, where a column names groups.
        latency_ms: batch size -> median milliseconds of a forward pass in torch over so many rows of the data.
        onnxruntime_latency_ms: the same by onnxruntime, from the folder's model.onnx; empty where there is none.
        threads: of both.
    """

    model: str
    task: str
    rows: int
    metrics: dict[str, float]
    parameters: int
    latency_ms: dict[int, float]
    device: str
    threads: int
    agreement: float | None = None
    divergence: float | None = None
    groups: GroupScores | None = None
    onnxruntime_latency_ms: dict[int, float] = field(default_factory=dict)
    questions: int | None = None

    @property
    def counted(self) -> str:
        """How many rows it was scored on, of what."""
        of = "" if self.questions is None else f" (windows of {self.questions:,} questions' contexts)"
        return f"{self.rows:,} rows{of}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        latencies = {
            name: {str(size): value for size, value in getattr(self, name).items()}
            for name in ("latency_ms", "onnxruntime_latency_ms")
        }
        groups = self.groups and {**asdict(self.groups), "mean": self.groups.mean}
        return {**self.__dict__, **latencies, "groups": groups}

    def table(self) -> list[tuple[str, str]]:
        """(name, value) of everything, written out for people."""
        lines = [(name.replace("_", " "), f"{value:.4g}") for name, value in self.metrics.items()]
        if self.groups is not None:
            over = f"over {len(self.groups.metrics)} {self.groups.column}"
            lines += [
                (f"mean {name.replace('_', ' ')} {over}", f"{value:.4g}") for name, value in self.groups.mean.items()
            ]
        if self.agreement is not None:
            lines.append(("agreement with the teacher", f"{self.agreement:.4f}"))
        if self.divergence is not None:
            lines.append(("KL to the teacher, nats", f"{abs(self.divergence):.4f}"))
        lines.append(("parameters", f"{self.parameters:,}"))
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        for runtime, latency_ms in (("torch", self.latency_ms), ("onnxruntime", self.onnxruntime_latency_ms)):
            for size, value in latency_ms.items():
                text = f"{value:.3g}" if value < 100 else f"{value:,.0f}"
                lines.append((f"{runtime}, batch {size}, {threads}", f"{text} ms"))
        return lines


def evaluate(
    model_path: Path | str,
    data: Sequence[str],
    names: ScoredColumns,
    dump: Path | None = None,
    task_name: str | None = None,
    device: str = "auto",
    max_length: int | None = None,
    positions: str | None = None,
    stride: int = DEFAULT_STRIDE,
) -> Report:
    """Score the model in a folder on files with gold labels, and against a dump where one is given.

    Raises:
        RecipeError: when the folder holds no model of the task, or its labels are not those of the data or dump.
    """
    model, task = load_model(model_path, task_name)
    where = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device
    try:
        model.to(torch.device(where))
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r}: not to be used here ({str(error).splitlines()[0]}).") from None
    tokenizer = load_tokenizer(str(model_path))
    label_names = label_names_of(model) if task.classes == "labels" else task.label_names
    length = max_length or longest_row(model, tokenizer)
    columns = names.columns(task, labels_required=True)
    source = TextSource(task, data, columns, tokenizer, length, label_names, positions, stride=stride)
    is_about_spans = task.classes == "spans"
    predictions = _predict(model, source, [OFFSETS] if is_about_spans else [])[0].with_lost_words(source.lost_words)
    if is_about_spans:
        predictions.examples = dict(enumerate(source.examples()))
    assert task.metrics is not None
    groups = None
    if names.group_column is not None:
        groups = score_groups(names.group_column, source.group_of_row, predictions, task.metrics)
    agreement = divergence = None
    if dump is not None:
        held_out = open_held_out(dump, task, label_names)
        check_same_tokenizer(model_path, held_out)
        agreement, divergence = agree(model, held_out)
    latency_ms, *others = _latencies(model, Path(model_path) / MODEL_FILE, source)
    return Report(
        model=str(model_path),
        task=task.name,
        rows=sum(source.group_rows),
        metrics=task.metrics(predictions),
        parameters=model.num_parameters(),
        latency_ms=latency_ms,
        device=str(where),
        threads=torch.get_num_threads(),
        agreement=agreement,
        divergence=divergence,
        groups=groups,
        onnxruntime_latency_ms=others[0] if others else {},
        questions=source.questions,
    )


def _latencies(model: PreTrainedModel, onnx_file: Path, source: Source) -> list[dict[int, float]]:
    """Latencies in torch and, where they can be compared (on the CPU), by onnxruntime from the exported file."""
    runtimes: list[Runtime] = [TorchRuntime(model)]
    if onnx_file.exists() and has_onnxruntime() and model.device.type == "cpu":
        exported = OnnxRuntime(onnx_file)
        largest, is_close = difference(runtimes[0], exported, first_batches(source, EVAL_ROWS, 1)[0])
        if not is_close:
            raise LecternError(
                f"{onnx_file}: its logits differ from those of the weights beside it by up to {largest:.2g}, so it is "
                "of another model; export it again, or delete it."
            )
        runtimes.append(exported)
    return latencies([(runtime, source) for runtime in runtimes], LATENCY_SECONDS)


def longest_row(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that a model takes at most, and no more than 512."""
    # The tokenizer's limit, because some architectures (RoBERTa) take fewer tokens than they have positions.
    reach = getattr(model.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_LENGTH
    return min(reach, tokenizer.model_max_length, DEFAULT_LENGTH)


def load_model(path: Path | str, task_name: str | None) -> tuple[PreTrainedModel, Task]:
    """A model folder as the task's class, in evaluation mode. Raises RecipeError where it holds no such model."""
    try:
        config = AutoConfig.from_pretrained(path)
        task = task_named(task_name or _task_of(config, path))
        if task.classes is None:
            raise UsageError(f"the task {task.name} has nothing to score; choose one with predictions.")
        loader = getattr(transformers, task.auto_class)
        model, info = loader.from_pretrained(path, use_safetensors=True, output_loading_info=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise RecipeError(f"{path}: no model can be loaded from there ({reason}).") from None
    if info["missing_keys"]:
        raise RecipeError(
            f"{path}: it has no weights for {', '.join(sorted(info['missing_keys'])[:3])}, which {task.name} needs; "
            "this checkpoint lacks that head."
        )
    return model.eval(), task


def label_names_of(model: PreTrainedModel) -> tuple[str, ...]:
    """A classifier's label names in order."""
    return tuple(str(model.config.id2label[index]) for index in range(model.config.num_labels))


def open_held_out(dump: Path, task: Task, label_names: tuple[str, ...] | None) -> DumpSource:
    """A dump to measure agreement on. Raises RecipeError when it is of another task or has other labels."""
    source = DumpSource(dump)
    if source.task.name != task.name:
        raise RecipeError(f"{dump}: a dump of {source.task.name}, but the model is one for {task.name}.")
    if source.label_names != label_names:
        raise RecipeError(f"{dump}: its labels are {source.label_names}, but the model's are {label_names}.")
    if source.distribution is None:
        raise RecipeError(f"{dump}: no distribution is recorded there, so there is nothing to agree with.")
    return source


def agree(model: PreTrainedModel, source: DumpSource) -> tuple[float, float]:
    """(share of positions with the teacher's first choice, mean KL(teacher || model) in nats) over a dump's rows."""
    assert source.distribution is not None
    _, agreed, divergence = _predict(model, source, [column.name for column in source.distribution.columns])
    return agreed, divergence


def predictions_of(model: PreTrainedModel, source: Source) -> Predictions:
    """What the model, in evaluation mode, says of every row."""
    return _predict(model, source, [])[0]


@torch.inference_mode()
def _predict(model: PreTrainedModel, source: Source, columns: Sequence[str]) -> tuple[Predictions, float, float]:
    """Predictions for every row; with a dump's columns also (agreement, mean KL) with its teacher."""
    predictions = Predictions(source.label_names or ())
    agreed = positions = 0
    divergence = 0.0
    # The value of a loss against sampled ids is no divergence.
    has_exact_ids = source.distribution is not None and source.distribution.has_exact_ids
    measure = KLLoss(tail="class" if has_exact_ids else None)
    head = plain_head(model) if source.task.classes == "vocabulary" else None
    for host_batch in in_order(source, columns, EVAL_ROWS, by_length=True):
        batch = to_device(host_batch, model.device)
        heard = heard_about(batch, source) if columns else Heard(None, {}, batch["labels"])
        guesses = []
        for part, logits_NV in said_about(model, batch, source, False, head).parts():
            said, heard_here = Said(logits_NV, ()), heard.part(part)
            labelled = int((heard_here.labels_N != formulas.MISSING_LABEL).sum())
            nats = formulas.cross_entropy(logits_NV, heard_here.labels_N)
            predictions.negative_log_likelihood += float(nats) * labelled
            predictions.labelled += labelled
            guesses.append(logits_NV.argmax(-1))
            if OFFSETS in batch["columns"]:
                predictions.spans |= best_answers(logits_NV, batch)
            if heard_here.targets is not None:
                agreed += int((guesses[-1] == heard_here.targets.argmax()).sum())
                positions += len(logits_NV)
                divergence += float(measure.value(said, heard_here, None)) * len(logits_NV)
        if source.task.classes != "vocabulary":
            counts = _distributions_per_row(batch, source)
            predictions.rows += batch["rows"].tolist()
            predictions.predicted += np.split(torch.cat(guesses).cpu().numpy(), np.cumsum(counts)[:-1])
            predictions.labels += np.split(batch["labels"].cpu().numpy(), np.cumsum(counts)[:-1])
    return predictions, agreed / max(positions, 1), divergence / max(positions, 1)


def _distributions_per_row(batch: Batch, source: Source) -> np.ndarray:
    rows, length = batch["input_ids"].shape
    if PLACES in batch:
        return np.full(rows, len(SPAN_LABELS))
    if source.recorded == "row":
        return np.ones(rows, np.int64)
    return np.bincount((batch["positions"] // length).cpu().numpy(), minlength=rows)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch's tensors on a device."""
    return {
        name: to_device(value, device) if isinstance(value, dict) else value.to(device) for name, value in batch.items()
    }


def _task_of(config: Any, path: Path | str) -> str:
    architecture = (config.architectures or [""])[0]
    suffixes = {task.auto_class.removeprefix("AutoModel"): name for name, task in TASKS.items() if task.classes}
    for suffix, name in {**suffixes, **_OTHER_NAMES}.items():
        if architecture.endswith(suffix):
            return name
    raise RecipeError(f"{path}: its architecture {architecture!r} does not tell the task; name it with --task.")
