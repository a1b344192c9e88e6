"""A model's predictions for every row of a source."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from shared.dump.layouts.spans import ENDPOINTS
from shared.text.metrics import Predictions
from student_train.data.batch import Batch
from student_train.data.batches import in_order
from student_train.data.sources import OFFSETS, Source
from student_train.data.spans import best_answers
from student_train.forward.head import plain_head
from student_train.forward.observe import outputs_of
from student_train.losses import formulas

EVAL_ROWS = 32


@torch.inference_mode()
def predictions_of(model: PreTrainedModel, source: Source, columns: Sequence[str] = ()) -> Predictions:
    """What the model, in evaluation mode, predicts for every row; answers to questions with the column of offsets."""
    predictions = Predictions(source.label_names or ())
    head = plain_head(model) if source.task.classes == "vocabulary" else None
    for host_batch in in_order(source, columns, EVAL_ROWS, by_length=True):
        batch = host_batch.to(model.device)
        guesses = []
        for part, logits_NV in outputs_of(model, batch, source, False, head).parts():
            labels_N = batch.labels[part]
            labelled = int((labels_N != formulas.MISSING_LABEL).sum())
            predictions.negative_log_likelihood += float(formulas.cross_entropy(logits_NV, labels_N)) * labelled
            predictions.labelled += labelled
            guesses.append(logits_NV.argmax(-1))
            if OFFSETS in batch.columns:
                predictions.spans |= best_answers(logits_NV, batch)
        if source.task.classes != "vocabulary":
            counts = _distributions_per_row(batch, source)
            predictions.rows += batch.rows.tolist()
            predictions.predicted += np.split(torch.cat(guesses).cpu().numpy(), np.cumsum(counts)[:-1])
            predictions.labels += np.split(batch.labels.cpu().numpy(), np.cumsum(counts)[:-1])
    return predictions


def _distributions_per_row(batch: Batch, source: Source) -> np.ndarray:
    rows, length = batch.input_ids.shape
    if batch.places is not None:
        return np.full(rows, len(ENDPOINTS))
    if source.recorded == "row":
        return np.ones(rows, np.int64)
    return np.bincount((batch.positions // length).cpu().numpy(), minlength=rows)
