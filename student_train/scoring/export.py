"""`distill export`: write a model folder as one ONNX file, after checking that onnxruntime gives the logits of torch.

Batch size and length are dynamic. The inputs are input_ids, attention_mask and, if the model has more than one token
type, token_type_ids; all are int64 [B, L], padded on the right.

Shapes: B rows, L tokens of the longest.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shared.errors import LecternError, RecipeError, UsageError
from shared.models.loading import load_tokenizer
from shared.storage.files import check_file, write_atomically
from shared.text.columns import ColumnNames
from shared.text.tasks import Task, task_named
from student_train.data.sources import TextSource
from student_train.scoring.latency import first_batches
from student_train.scoring.models import load_model, longest_row
from student_train.scoring.runtimes import INPUTS, MODEL_FILE, OnnxRuntime, TorchRuntime, difference

# An ONNX file is a protocol buffer, which holds at most 2 GiB.
LARGEST_BYTES = 2**31
# Name of an argument of a model -> its value.
Inputs = dict[str, Tensor]

# (rows, longest row) of the batches that the file is checked with; all differ from the traced one.
CHECKED_SHAPES = ((1, 1), (1, 9), (2, 512), (5, 33), (32, 17))
TRACED_SHAPE = (3, 6)
# Batch sizes for the rows that --data gives, and the number of batches of each size.
CHECKED_SIZES = (1, 5, 32)
BATCHES_OF_DATA = 4


@dataclass(frozen=True)
class Exported:
    """An exported file and the result of its check.

    Attributes:
        difference: the largest difference between a logit in torch and in onnxruntime.
        rows, batches: how many were compared.
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    difference: float
    rows: int
    batches: int


def export(folder: Path, out: Path | None, task_name: str | None, data: Sequence[str], names: ColumnNames) -> Exported:
    """Write the model of a folder to `out` (by default model.onnx in the folder), completely or not at all.

    The check compares rows of ids drawn from the whole vocabulary, and the first rows of `data`.

    Raises:
        UsageError, RecipeError: if the extra is not installed, the task has no logits, or the folder holds no model.
        LecternError: if the model cannot be translated, or the logits of the file differ from those in torch.
    """
    _check_extra()
    if task_name is not None:
        _check_has_logits(task_named(task_name))
    path = out or folder / MODEL_FILE
    if folder.is_dir():
        check_file(path, "--out")
    model, task = load_model(folder, task_name)
    _check_has_logits(task)
    tokenizer = load_tokenizer(str(folder), RecipeError)
    if (size := sum(weight.numel() * weight.element_size() for weight in model.parameters())) >= LARGEST_BYTES:
        raise LecternError(f"{folder}: {size / 1e9:.1f} GB of weights are more than one ONNX file can hold (2.1 GB).")
    batches = _drawn_batches(model, tokenizer)
    if data:
        batches += _batches_of(data, model, task, tokenizer, names)
    found: list[Exported] = []

    def write(temporary: Path) -> None:
        inputs, outputs = _translate(model, tokenizer, temporary, folder)
        largest = _check(model, temporary, path, batches)
        rows = sum(len(batch["input_ids"]) for batch in batches)
        found.append(Exported(path, inputs, outputs, largest, rows, len(batches)))

    write_atomically(path, write)
    return found[0]


def _check_has_logits(task: Task) -> None:
    if not task.has_predictions:
        raise UsageError(f"the task {task.name} has no logits to export; choose another task.")


def _check_extra() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(f"export needs {error.name}: pip install 'lectern[onnx]'.") from None


class _Logits(nn.Module):
    """A model with positional inputs that returns nothing but its logits."""

    def __init__(self, model: PreTrainedModel, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *tensors_BL: Tensor) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self.inputs, tensors_BL, strict=True)))
        return tuple(output[name] for name in self.outputs)


def _translate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path, folder: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write the file, and return the names of its inputs and outputs."""
    model.config.use_cache = False
    sample = _drawn(model, tokenizer, *TRACED_SHAPE, generator=torch.Generator().manual_seed(0))
    inputs = tuple(name for name in INPUTS if name in sample)
    outputs = tuple(TorchRuntime(model).run(sample))
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with _quiet():
        try:
            program = torch.onnx.export(
                _Logits(model, inputs, outputs).eval(),
                tuple(sample[name] for name in inputs),
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=(tuple(free for _ in inputs),),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise LecternError(
                f"{folder}: {type(model).__name__} cannot be translated to ONNX with free batch and length "
                f"({_reason(error)})."
            ) from error
        assert program is not None
        program.save(file, external_data=False)
    return inputs, outputs


def _reason(error: BaseException) -> str:
    """Return the first line of the original error, which torch's exporter wraps in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n")[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about missing packages and constants that it does not fold."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _check(model: PreTrainedModel, file: Path, path: Path, batches: Sequence[Inputs]) -> float:
    """Return the largest difference between logits. Raises LecternError if one exceeds the tolerance."""
    torch_runtime, exported = TorchRuntime(model), OnnxRuntime(file)
    largest = 0.0
    for batch in batches:
        apart, is_close = difference(torch_runtime, exported, batch)
        if not is_close:
            rows, length = batch["input_ids"].shape
            raise LecternError(
                f"{path}: not written, because onnxruntime's logits differ from torch's by up to {apart:.2g} on "
                f"{rows} rows of up to {length} tokens; {type(model).__name__} is not translated correctly."
            )
        largest = max(largest, apart)
    return largest


def _drawn_batches(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Inputs]:
    """Return batches of random ids from the whole vocabulary, with varied padding, up to the longest possible row."""
    generator = torch.Generator().manual_seed(1)
    limit = longest_row(model, tokenizer)
    return [_drawn(model, tokenizer, rows, min(longest, limit), generator) for rows, longest in CHECKED_SHAPES]


def _drawn(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: int, longest: int, generator: torch.Generator
) -> Inputs:
    """Return random inputs [rows, longest] for the model; rows have 1 to `longest` tokens, the last one the most."""
    padding = tokenizer.pad_token_id or 0
    lengths_B = torch.randint(1, longest + 1, (rows,), generator=generator)
    lengths_B[-1] = longest
    mask_BL = (torch.arange(longest) < lengths_B[:, None]).long()
    ids_BL = torch.randint(len(tokenizer), (rows, longest), generator=generator)
    drawn: dict[str, Any] = {"input_ids": torch.where(mask_BL == 1, ids_BL, padding), "attention_mask": mask_BL}
    types = getattr(model.config, "type_vocab_size", None) or 0
    if types > 1:
        types_BL = torch.randint(types, (rows, longest), generator=generator)
        drawn["token_type_ids"] = types_BL * mask_BL
    return drawn


def _batches_of(
    data: Sequence[str], model: PreTrainedModel, task: Task, tokenizer: PreTrainedTokenizerBase, names: ColumnNames
) -> list[Inputs]:
    columns = task.columns(names, labels_required=False)
    label_names = task.label_names_of(model.config)
    source = TextSource(task, data, columns, tokenizer, longest_row(model, tokenizer), label_names)
    return [batch.inputs for size in CHECKED_SIZES for batch in first_batches(source, size, BATCHES_OF_DATA)]
