"""The loss on the embedding of each row.

Shapes: R rows, D width of the student, E width of the teacher.
"""

from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from student_train.data.sources import Source
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.forward.teacher_vectors import Compare, compared_in_slices
from student_train.forward.widths import hidden_widths
from student_train.losses import formulas
from student_train.losses.embeddings.base import KEY, RowsLoss

_COMPARE: dict[str, Compare] = {"mse": formulas.hidden_mse, "cosine": formulas.hidden_cosine}


class EmbeddingLoss(RowsLoss):
    """The student's embedding of a row compared with the teacher's: their mean squared error (Reimers & Gurevych 2020,
    "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation", arXiv 2004.09813), or one minus
    their cosine.

    If the widths differ, a linear map takes the student's embedding to the teacher's width. It is trained with the
    student and dropped afterwards, so that the finished student's embeddings are vectors of a space of its own: they
    can be compared with one another, and not with the teacher's. At the teacher's width there is no map, and an index
    of the teacher's embeddings can be searched with the student's.
    """

    kind: Literal["embedding"] = "embedding"
    metric: Literal["mse", "cosine"] = "mse"

    def make_projection(self, source: Source, student: PreTrainedModel, where: str) -> nn.Module | None:
        own, teacher = hidden_widths(student)[-1], source.widths[KEY]
        return nn.Linear(own, teacher) if own != teacher else None

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        student_RD = self.student_embeddings(outputs)
        return compared_in_slices(student_RD, projection, targets.vectors[KEY], _COMPARE[self.metric])
