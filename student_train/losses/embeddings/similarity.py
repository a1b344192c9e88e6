"""The loss on the similarities between the rows of a batch.

Shapes: R rows, D width of the student, E width of the teacher.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from shared.numbers import Factor
from student_train.data.batch import Batch
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.losses.embeddings.base import KEY, RowsLoss


class SimilarityLoss(RowsLoss):
    """How similar a row is to the other rows of its batch, compared with the teacher's similarities.

    For each row, the cosines with all other rows, divided by `temperature`, become a distribution over these rows; the
    loss is the mean of KL(teacher || student) over rows. (Fang et al. 2021, "SEED", arXiv 2101.04731, with the batch in
    place of a queue.) Widths may differ without a map.

    The rows that a row is compared with are those that are in memory together: of one accumulated batch and one rank,
    and not of the whole optimizer step. So accumulation and ranks change this loss, unlike the others; a larger
    `batch_size` gives each row more to be compared with. A batch of one row has no such loss.
    """

    kind: Literal["similarity"] = "similarity"
    temperature: Factor = 0.05

    def count(self, batch: Batch) -> int:
        rows = super().count(batch)
        return rows if rows > 1 else 0

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        student_RD = self.student_embeddings(outputs)
        with torch.autocast(student_RD.device.type, enabled=False):
            teacher_RE = targets.vectors[KEY].decode(slice(0, len(student_RD)))
            return similarity_kl(student_RD, teacher_RE, self.temperature)


def similarity_kl(student_RD: Tensor, teacher_RE: Tensor, temperature: float) -> Tensor:
    """Return the mean over rows of KL(teacher || student) between distributions over the other rows; 0 for one row.

    A row's distribution is the softmax of its cosines with the other rows, divided by the temperature.
    """
    if len(student_RD) < 2:
        return student_RD.sum() * 0
    is_self_RR = torch.eye(len(student_RD), dtype=torch.bool, device=student_RD.device)
    student_RR, teacher_RR = (
        _log_similarities(rows, is_self_RR, temperature) for rows in (student_RD, teacher_RE.to(student_RD.dtype))
    )
    # Both are -inf for a row and itself, and their difference NaN.
    apart_RR = (teacher_RR - student_RR).masked_fill(is_self_RR, 0)
    return (teacher_RR.exp() * apart_RR).sum(1).mean()


def _log_similarities(rows_RD: Tensor, is_self_RR: Tensor, temperature: float) -> Tensor:
    unit_RD = nn.functional.normalize(rows_RD, dim=-1)
    return (unit_RD @ unit_RD.T / temperature).masked_fill(is_self_RR, float("-inf")).log_softmax(-1)
