"""Train a student's matrices as products around the teacher's: Weight Squeezing.

Chumachenko et al. 2020 (arXiv 2010.06993): a matrix of the student is A W B, where W is the teacher's and stays as it
is, and A and B are learnt, so that every number of W goes on taking part. Shapes: W [P, Q] of the teacher, A [p, P] and
B [Q, q] for the student's [p, q]. A and B start as the choice of rows and columns that `extract` makes, so that the
training starts from the extracted student. Biases, norms, embeddings and heads of tasks start as extracted and are
trained by themselves: a product with the whole table of embeddings in every step would cost more than the student.

What is saved is the product, a plain model of the student's shape. W is in no checkpoint (a resumed run reads it from
the dump again); while training, a matrix has P p + Q q parameters to learn in place of p q, and needs 2 p P Q + 2 p Q q
more FLOPs in each forward pass, however many tokens the batch has.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from student_train.students.initialisers.base import Initialiser
from student_train.students.initialisers.from_teacher import begin_extracted, teacher_matrices
from student_train.students.needs import Needs


class Squeeze(Initialiser):
    """The matrices of the layers as A W B, where W is the teacher's."""

    part = "weights"
    needs_teacher: ClassVar[bool] = True

    kind: Literal["squeeze"] = "squeeze"
    by: Literal["random", "importance"]

    @property
    def needs_importance(self) -> bool:
        return self.by == "importance"

    def initialise(self, model: PreTrainedModel, needs: Needs) -> None:
        selection = begin_extracted(model, needs, self, self.by)
        assert needs.teacher is not None
        for path, taken in teacher_matrices(model, needs.teacher.tensors, selection.layers).items():
            matrix, weight_PQ = taken.matrix, taken.weight_PQ.float()
            rows, columns = (selection.kept[matrix.layer][axis] for axis in matrix.axes)
            scales = selection.query_scales[matrix.layer] if matrix.kind == "query" else torch.ones(len(rows))
            squeezed = Squeezed(
                weight_PQ,
                nn.functional.one_hot(rows, weight_PQ.shape[0]) * scales[:, None],
                nn.functional.one_hot(columns, weight_PQ.shape[1]).T.float(),
            )
            parametrize.register_parametrization(model.get_submodule(path), "weight", squeezed)


class Squeezed(nn.Module):
    """The weight A W B of a linear map; A and B are the parameters of the parametrized module."""

    weight_PQ: Tensor

    def __init__(self, weight_PQ: Tensor, left_pP: Tensor, right_Qq: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight_PQ", weight_PQ.clone(), persistent=False)
        self._initial = left_pP.contiguous(), right_Qq.contiguous()

    def forward(self, left_pP: Tensor, right_Qq: Tensor) -> Tensor:
        return left_pP @ self.weight_PQ @ right_Qq

    def right_inverse(self, weight_pq: Tensor) -> tuple[Tensor, Tensor]:
        """Return A and B as they start; torch asks for them when the parametrization is registered."""
        return self._initial
