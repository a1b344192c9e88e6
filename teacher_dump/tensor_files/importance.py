"""`dump --importance ROWS`: how much the teacher's loss depends on each head, neuron and residual dimension.

The loss of a row is the mean over its gold labels of the cross-entropy: of the row's label, its tags, its answer, its
masked tokens (drawn as the task masked-lm draws them) or its next tokens. An encoder has no labels and no outputs but
its hidden states. There the loss is the mean over tokens of r . h, with the last hidden state h and a vector r of
standard normal numbers that is drawn for each token from (seed, row). Such a loss has no direction of its own: the size
of its derivative is, on average over r and up to a constant, the length of the derivative of h, so a part is important
if the encoder's outputs depend on it.

Shapes: B rows, L tokens of the longest, D width, S distributions, C classes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shared.dump.layouts import Layout
from shared.dump.rowgroup import MISSING
from shared.dump.weights.tensor_file import TensorFile
from shared.errors import TeacherError, UsageError
from shared.text.rows import row_group
from shared.text.tasks import Task
from shared.text.tokenized import TokenizedRow
from teacher_dump.engines.base import Engine
from teacher_dump.engines.batch import Batch, pad
from teacher_dump.request import Request

# The activations of all layers are kept for the gradients, so a batch is smaller than without.
BATCH_TOKENS = 2048
# The hash of tensors that are not measured yet.
_UNKNOWN = "0" * 64


def importance(request: Request, engine: Engine) -> TensorFile | None:
    """The file as a command asks for it, before it is measured."""
    if request.importance is None:
        return None
    return TensorFile(tensors=3, bytes=0, sha256=_UNKNOWN, facts={"rows": request.importance})


def check_labels(request: Request, task: Task, layout: Layout, labelled_rows: int) -> None:
    """Check, before the teacher is loaded, that the loss has gold labels. Raises UsageError if no row has any."""
    if request.importance is not None and layout.has_distributions and not task.is_labelled(labelled_rows):
        raise UsageError(
            f"--importance {request.importance}: the loss of {task.name} needs gold labels, but no row of the corpus "
            "has one; name their column, or leave the option out."
        )


def measured(
    request: Request, engine: Engine, task: Task, layout: Layout, rows: Iterable[tuple[int, TokenizedRow]]
) -> TensorFile:
    """The file with the importance of the teacher's parts on these rows, given with their numbers.

    Raises:
        UsageError: if none of the rows has a gold label that the loss needs.
        TeacherError: for an architecture in which heads and neurons are not found, or if memory runs out.
    """
    needs_labels = layout.has_distributions
    usable = [
        (number, row)
        for number, row in rows
        if len(row.input_ids) and (not needs_labels or (row.labels != MISSING).any())
    ]
    if not usable:
        what = "a gold label" if task.has_labels else "anything to predict"
        raise UsageError(
            f"--importance {request.importance}: none of the first {request.importance} rows of the corpus has "
            f"{what if needs_labels else 'any token'}; ask for more rows, or leave the option out."
        )
    budget = min(request.batch_tokens or BATCH_TOKENS, BATCH_TOKENS)
    loss = cross_entropy(layout) if needs_labels else random_projection(request.seed)
    try:
        tensors = engine.importance(_batches(engine, layout, usable, budget), loss)
    except (RuntimeError, MemoryError) as error:
        if not engine.memory.ran_out(error):
            raise
        raise TeacherError(
            f"--importance: the gradients of {budget:,} tokens do not fit into the memory of {engine.device}; use a "
            "smaller --batch-tokens or --max-length, or --dtype bf16."
        ) from None
    return TensorFile.of(tensors, rows=request.importance)


def cross_entropy(layout: Layout) -> Callable[[Tensor | None, Tensor, Batch], Tensor]:
    """The sum over rows of the mean cross-entropy of a row's gold labels."""

    def loss(logits: Tensor | None, states_BLD: Tensor, batch: Batch) -> Tensor:
        assert logits is not None
        index = layout.index(row_group(batch.rows, batch.numbers), batch.width)
        tensors = {each.name: getattr(index, each.name) for each in fields(index)}
        moved: dict[str, Any] = {
            name: value.to(logits.device) for name, value in tensors.items() if isinstance(value, Tensor)
        }
        logits_SC = layout.distributions(logits, replace(index, **moved))
        wide_SC = logits_SC if logits_SC.dtype == torch.float64 else logits_SC.float()
        labels_S = index.labels.to(logits.device)
        losses_S = functional.cross_entropy(wide_SC, labels_S, ignore_index=MISSING, reduction="none")
        row_S = torch.repeat_interleave(torch.arange(len(index.counts)), index.counts).to(logits.device)
        counted_S = labels_S != MISSING
        counts_B = torch.zeros(len(index.counts), device=logits.device, dtype=wide_SC.dtype)
        counts_B = counts_B.index_add(0, row_S, counted_S.to(wide_SC.dtype))
        return (losses_S[counted_S] / counts_B[row_S[counted_S]]).sum()

    return loss


def random_projection(seed: int) -> Callable[[Tensor | None, Tensor, Batch], Tensor]:
    """The sum over rows of the mean over a row's tokens of r . h."""

    def loss(logits: Tensor | None, states_BLD: Tensor, batch: Batch) -> Tensor:
        drawn_BLD = np.zeros(states_BLD.shape)
        for at, (number, length) in enumerate(zip(batch.numbers, batch.lengths, strict=True)):
            drawn = np.random.default_rng([seed, number]).standard_normal((length, states_BLD.shape[-1]))
            drawn_BLD[at, :length] = drawn / length
        wide_BLD = states_BLD if states_BLD.dtype == torch.float64 else states_BLD.float()
        return (wide_BLD * torch.from_numpy(drawn_BLD).to(wide_BLD.dtype).to(wide_BLD.device)).sum()

    return loss


def _batches(engine: Engine, layout: Layout, rows: Sequence[tuple[int, TokenizedRow]], budget: int) -> Iterator[Batch]:
    """Padded batches of rows of similar length."""
    left = sorted(rows, key=lambda row: (-len(row[1].input_ids), row[0]))
    while left:
        count = 1 if engine.one_row_a_batch else max(1, budget // len(left[0][1].input_ids))
        part, left = left[:count], left[count:]
        numbers, tokenized = [number for number, _ in part], [row for _, row in part]
        batch = pad(tokenized, numbers, engine.pad_token_id)
        inputs = layout.index(row_group(tokenized, numbers), batch.width).inputs
        yield replace(batch, inputs={**batch.inputs, **inputs})
