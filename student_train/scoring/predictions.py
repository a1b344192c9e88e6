"""A model's predictions for every row of a source, and how they agree with a dumped teacher's."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from shared.dump.layouts.spans import ENDPOINTS
from shared.text.metrics import Predictions
from student_train.data.batch import Batch
from student_train.data.batches import in_order
from student_train.data.sources import OFFSETS, DumpSource, Source
from student_train.data.spans import best_answers
from student_train.forward.head import plain_head
from student_train.forward.observe import outputs_of, targets_of
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.losses import formulas
from student_train.losses.logits import KLLoss

EVAL_ROWS = 32


def agree(model: PreTrainedModel, source: DumpSource) -> tuple[float, float]:
    """(share of positions with the teacher's first choice, mean KL(teacher || model) in nats) over a dump's rows."""
    assert source.distribution is not None
    _, agreed, divergence = predict(model, source, [column.name for column in source.distribution.columns])
    return agreed, divergence


def predictions_of(model: PreTrainedModel, source: Source) -> Predictions:
    """What the model, in evaluation mode, says of every row."""
    return predict(model, source, [])[0]


@torch.inference_mode()
def predict(model: PreTrainedModel, source: Source, columns: Sequence[str]) -> tuple[Predictions, float, float]:
    """Predictions for every row; with a dump's columns also (agreement, mean KL) with its teacher."""
    predictions = Predictions(source.label_names or ())
    agreed = positions = 0
    divergence = 0.0
    # The value of a loss against sampled ids is no divergence.
    has_exact_ids = source.distribution is not None and source.distribution.has_exact_ids
    measure = KLLoss(tail="class" if has_exact_ids else None)
    head = plain_head(model) if source.task.classes == "vocabulary" else None
    for host_batch in in_order(source, columns, EVAL_ROWS, by_length=True):
        batch = host_batch.to(model.device)
        targets = targets_of(batch, source) if columns else BatchTargets(None, {}, batch.labels)
        guesses = []
        for part, logits_NV in outputs_of(model, batch, source, False, head).parts():
            outputs, compared = Outputs(logits_NV, ()), targets.part(part)
            labelled = int((compared.labels_N != formulas.MISSING_LABEL).sum())
            nats = formulas.cross_entropy(logits_NV, compared.labels_N)
            predictions.negative_log_likelihood += float(nats) * labelled
            predictions.labelled += labelled
            guesses.append(logits_NV.argmax(-1))
            if OFFSETS in batch.columns:
                predictions.spans |= best_answers(logits_NV, batch)
            if compared.distributions is not None:
                agreed += int((guesses[-1] == compared.distributions.argmax()).sum())
                positions += len(logits_NV)
                divergence += float(measure.value(outputs, compared, None)) * len(logits_NV)
        if source.task.classes != "vocabulary":
            counts = _distributions_per_row(batch, source)
            predictions.rows += batch.rows.tolist()
            predictions.predicted += np.split(torch.cat(guesses).cpu().numpy(), np.cumsum(counts)[:-1])
            predictions.labels += np.split(batch.labels.cpu().numpy(), np.cumsum(counts)[:-1])
    return predictions, agreed / max(positions, 1), divergence / max(positions, 1)


def _distributions_per_row(batch: Batch, source: Source) -> np.ndarray:
    rows, length = batch.input_ids.shape
    if batch.places is not None:
        return np.full(rows, len(ENDPOINTS))
    if source.recorded == "row":
        return np.ones(rows, np.int64)
    return np.bincount((batch.positions // length).cpu().numpy(), minlength=rows)
