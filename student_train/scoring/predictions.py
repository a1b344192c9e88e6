"""A model's predictions for every row of a source."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from shared.dump.rowgroup import MISSING
from shared.errors import LecternError
from shared.text.predictions import Predictions
from student_train.data.batches import in_order
from student_train.data.sources import Source
from student_train.forward.head import plain_head
from student_train.forward.observe import outputs_of
from student_train.losses import formulas
from student_train.recipe.decoding import Decode
from student_train.scoring.decoding import decoder_of

EVAL_ROWS = 32


@torch.inference_mode()
def predictions_of(
    model: PreTrainedModel, source: Source, columns: Sequence[str] = (), decode: Decode | None = None
) -> Predictions:
    """Return the predictions of a model, in evaluation mode, for every row of a source.

    With `columns`, the task's `scoring_columns`, they include everything that the task's metrics need. `decode`: see
    `decoder_of`.
    """
    predictions = Predictions(source.label_names or ())
    task = source.task
    head = plain_head(model) if task.predicts_vocabulary else None
    _, predict = decoder_of(decode, model, source)
    for host_batch in in_order(source, columns, EVAL_ROWS, by_length=True):
        batch = host_batch.to(model.device)
        rows, guesses = batch.rows.tolist(), []
        for part, logits_NV in outputs_of(model, batch, source, False, head).parts():
            if bool(logits_NV.isnan().any()):
                raise LecternError(
                    f"the model's logits are NaN, first in one of the rows {min(rows)} to {max(rows)}, so it cannot be "
                    "scored; train it again with a lower learning rate."
                )
            labels_N = batch.labels[part]
            labelled = int((labels_N != MISSING).sum())
            predictions.negative_log_likelihood += float(formulas.cross_entropy(logits_NV, labels_N)) * labelled
            predictions.labelled += labelled
            guesses.append(predict(logits_NV, batch))
            if task.scoring_columns and batch.columns.keys() >= set(task.scoring_columns):
                predictions.notes |= task.notes(rows, logits_NV, batch.index, batch.columns)
        if task.scores_rows:
            ends = np.cumsum(batch.index.counts.cpu().numpy())[:-1]
            predictions.rows += rows
            predictions.predicted += np.split(torch.cat(guesses).cpu().numpy(), ends)
            predictions.labels += np.split(batch.labels.cpu().numpy(), ends)
    return predictions
