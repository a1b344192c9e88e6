"""Scores of any model folder: metrics on held-out files, agreement with the teacher of a dump, size and latency."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from shared.errors import LecternError, RecipeError, UsageError
from shared.models.devices import usable_device
from shared.models.loading import load_tokenizer
from shared.storage import Place
from shared.text.columns import ScoredColumns
from shared.text.groups import score_groups
from shared.text.lengths import DEFAULT_STRIDE
from shared.text.tasks import Task
from student_train.chains.transitions import transitions_of
from student_train.data.pairs import ScoredPairs
from student_train.data.sources import DumpSource, Source, TextSource
from student_train.data.tokenizers import check_same_tokenizer
from student_train.recipe.decoding import Decode
from student_train.scoring.agreement import agreement_of
from student_train.scoring.decoding import check_decode, decoder_of
from student_train.scoring.latency import first_batches, latencies
from student_train.scoring.models import load_model, longest_row
from student_train.scoring.pairs import follow_folder, scores_of
from student_train.scoring.predictions import EVAL_ROWS, predictions_of
from student_train.scoring.report import Report
from student_train.scoring.runtimes import MODEL_FILE, OnnxRuntime, Runtime, TorchRuntime, difference, has_onnxruntime
from student_train.students.build import reach_of

LATENCY_SECONDS = 1.0  # for each runtime and size of batch


def evaluate(
    model_path: Path | str,
    data: Sequence[str],
    names: ScoredColumns,
    dump: Place | None = None,
    task_name: str | None = None,
    device: str = "auto",
    max_length: int | None = None,
    positions: str | None = None,
    stride: int = DEFAULT_STRIDE,
    decode: Decode | None = None,
) -> Report:
    """Score the model in a folder on files with gold labels, and its agreement with a dump's teacher if one is given.

    Raises:
        RecipeError: if the folder holds no model for the task, or the model's labels are not those of the files or the
            dump.
    """
    where = usable_device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    model, task = load_model(model_path, task_name)
    model.to(where)
    tokenizer = load_tokenizer(str(model_path), RecipeError)
    ids = getattr(model.config.get_text_config(), "vocab_size", None)
    if ids is not None and len(tokenizer) > ids:
        raise RecipeError(
            f"{model_path}: its tokenizer has {len(tokenizer):,} entries but the model only {ids:,}; this tokenizer "
            "belongs to another model."
        )
    label_names = task.label_names_of(model.config)
    reach = reach_of(model)
    if max_length is not None and reach is not None and max_length > reach:
        raise UsageError(f"--max-length {max_length}: {model_path} reads at most {reach} tokens; give no more.")
    length = max_length or longest_row(model, tokenizer)
    if task.has_embeddings:
        check_decode(decode, False, label_names, False, "--decode")
        limit = follow_folder(model, model_path, tokenizer)
        length = min(length, limit or length)
        return _on_pairs(model, task, str(model_path), ScoredPairs.of(task, data, names, tokenizer, length), dump)
    columns = task.scored_columns(names)
    source = TextSource(task, data, columns, tokenizer, length, label_names, positions, stride=stride)
    if dump is None and not any(source.gold(group)[1].any() for group in range(len(source.group_rows))):
        raise UsageError(
            f"{', '.join(data)}: no row has a gold label, so there is nothing to score; name the column of the labels, "
            "or give --dump to measure the agreement with a teacher."
        )
    check_decode(decode, source.has_chains, label_names, transitions_of(model) is not None, "--decode")
    predictions = predictions_of(model, source, task.scoring_columns, decode).with_lost_words(source.lost_words)
    if task.needs_examples:
        predictions.examples = dict(enumerate(source.examples()))
    groups = None
    if names.group_column is not None:
        groups = score_groups(names.group_column, source.group_of_row, predictions, task.metrics)
    agreement = None
    if dump is not None:
        held_out = open_held_out(dump, task, label_names)
        check_same_tokenizer(model_path, held_out)
        agreement = agreement_of(model, held_out)
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
        agreement=None if agreement is None else agreement.share,
        divergence=None if agreement is None else agreement.divergence,
        groups=groups,
        onnxruntime_latency_ms=others[0] if others else {},
        questions=source.questions,
        decode=decoder_of(decode, model, source)[0],
    )


def _on_pairs(model: PreTrainedModel, task: Task, name: str, pairs: ScoredPairs, dump: Place | None) -> Report:
    """Score a model's embeddings."""
    if dump is not None:
        raise UsageError(f"{dump}: {task.name} has no predictions that could agree with a teacher's; leave --dump out.")
    return Report(
        model=name,
        task=task.name,
        rows=len(pairs),
        metrics=scores_of(model, pairs),
        parameters=model.num_parameters(),
        latency_ms=latencies([(TorchRuntime(model), pairs.texts)], LATENCY_SECONDS)[0],
        device=str(model.device),
        threads=torch.get_num_threads(),
    )


def _latencies(model: PreTrainedModel, onnx_file: Path, source: Source) -> list[dict[int, float]]:
    """Return latencies in torch and, on the CPU if the model has been exported, in onnxruntime."""
    runtimes: list[Runtime] = [TorchRuntime(model)]
    if onnx_file.exists() and has_onnxruntime() and model.device.type == "cpu":
        exported = OnnxRuntime(onnx_file)
        largest, is_close = difference(runtimes[0], exported, first_batches(source, EVAL_ROWS, 1)[0].inputs)
        if not is_close:
            raise LecternError(
                f"{onnx_file}: its logits differ from those of the weights beside it by up to {largest:.2g}, so it "
                "belongs to another model; export it again, or delete it."
            )
        runtimes.append(exported)
    return latencies([(runtime, source) for runtime in runtimes], LATENCY_SECONDS)


def open_held_out(dump: Place, task: Task, label_names: tuple[str, ...] | None) -> DumpSource:
    """Open a dump to measure agreement on. Raises RecipeError for another task, other labels or no distribution."""
    source = DumpSource(dump)
    if source.task.name != task.name:
        raise RecipeError(f"{dump}: a dump of {source.task.name}, but the model is one for {task.name}.")
    if source.label_names != label_names:
        raise RecipeError(f"{dump}: its labels are {source.label_names}, but the model's are {label_names}.")
    if source.distribution is None:
        raise RecipeError(f"{dump}: the dump has no distribution, so the agreement with its teacher is not known.")
    return source
