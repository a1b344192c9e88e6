"""Answers to questions: two distributions a row, over the row's own recorded positions.

Every loss and measure looks at distributions as rows of logits over the same number of classes. So the positions of a
row are its classes here, filled up to those of the batch's longest with -inf, which no softmax sees.

Shapes: B rows, L tokens of the longest, N recorded positions of all rows, M positions of the row that has most, S = 2 B
distributions: of each row where the answer starts, then where it ends.
"""

import numpy as np
import torch
from torch import Tensor

from shared.dump.codecs import DenseTargets, Targets
from shared.dump.layouts.spans import ENDS, STARTS
from shared.dump.rowgroup import MISSING, RowGroup
from shared.text.answers import BestSpan, best_span
from student_train.data.batch import Batch
from student_train.data.sources import OFFSETS


def span_batch(rows: RowGroup) -> tuple[Tensor, Tensor]:
    """(which of M places a row has a position for, bool [B, M]; labels, int64 [S]: which of the row's positions is the
    gold one, -100 where that is not known)."""
    counts_B = np.diff(rows.position_offsets)
    places_BM = np.arange(counts_B.max(initial=0)) < counts_B[:, None]
    marks_BM = np.full(places_BM.shape, 0, np.int64)
    marks_BM[places_BM] = rows.labels
    labels_B2 = np.stack([_where((marks_BM > 0) & (marks_BM & mark > 0)) for mark in (STARTS, ENDS)], axis=1)
    return torch.from_numpy(places_BM), torch.from_numpy(labels_B2.reshape(-1))


def _where(is_gold_BM: np.ndarray) -> np.ndarray:
    return np.where(is_gold_BM.any(1), is_gold_BM.argmax(1) if is_gold_BM.shape[1] else 0, MISSING)


def over_positions(logits_N2: Tensor, places_BM: Tensor) -> Tensor:
    """Logits of starting and of ending at each position -> logits_SM, -inf where a row has no more positions."""
    nothing_BM = torch.full(places_BM.shape, -torch.inf, dtype=logits_N2.dtype, device=logits_N2.device)
    both = [nothing_BM.masked_scatter(places_BM, logits_N) for logits_N in logits_N2.unbind(-1)]
    return torch.stack(both, dim=1).flatten(0, 1)


def targets_over_positions(targets: Targets, places_BM: Tensor) -> DenseTargets:
    """The teacher's logits of each position -> its distributions over them."""
    assert isinstance(targets, DenseTargets)
    return DenseTargets(over_positions(targets.logits_NV, places_BM))


def best_answers(logits_SM: Tensor, batch: Batch) -> dict[int, BestSpan]:
    """The best answer of each row, by the row's number, of a batch that has the column of offsets."""
    offsets_N2 = batch.columns[OFFSETS].cpu().numpy()
    assert batch.places is not None
    places_BM = batch.places.cpu().numpy()
    logits_B2M = logits_SM.float().cpu().numpy().reshape(len(places_BM), 2, -1)
    offsets_by_row = np.split(offsets_N2, np.cumsum(places_BM.sum(1))[:-1])
    rows = zip(batch.rows.tolist(), logits_B2M, places_BM, offsets_by_row, strict=True)
    return {
        row: best_span(start_M[is_there_M], end_M[is_there_M], offsets_P2)
        for row, (start_M, end_M), is_there_M, offsets_P2 in rows
    }
