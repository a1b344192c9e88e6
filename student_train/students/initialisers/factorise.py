"""Train the matrices of the teacher's layers in factors of a low rank.

Noach & Goldberg 2020 (AACL, "Compressing Pre-trained Language Models by Matrix Decomposition"): a matrix W [p, q] of a
layer becomes U V, with U [p, r] and V [r, q]; they start as the truncated SVD of the teacher's matrix, the best product
of rank r (Eckart & Young 1936), and are trained as two matrices. The factors take r (p + q) parameters, and 2 r (p + q)
FLOPs a token, in place of p q and 2 p q; that is less if r < p q / (p + q).

What is saved is the product: a plain folder of transformers has one matrix for each linear map. It loads like any
other and computes the same, with as many parameters and FLOPs as the teacher's layers. Its config.json has the key
`factorised_rank`: a rank-r SVD of each matrix gives factors back whose product is the same up to rounding, for whoever
runs the student in a form that saves them. Embeddings, norms and biases are the teacher's.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from shared.errors import RecipeError
from shared.numbers import Count
from student_train.students.initialisers.base import Initialiser
from student_train.students.initialisers.from_teacher import begin_whole, matrices_of
from student_train.students.needs import Needs

# The key of config.json with the rank of the matrices of all layers.
RANK_KEY = "factorised_rank"


class Factorise(Initialiser):
    """Whole layers of the teacher, spread evenly, whose matrices are trained as two factors of a rank."""

    part = "weights"
    needs_teacher: ClassVar[bool] = True

    kind: Literal["factorise"] = "factorise"
    rank: Count

    def initialise(self, model: PreTrainedModel, needs: Needs) -> None:
        begin_whole(model, needs, self)
        for path in matrices_of(model):
            linear = model.get_submodule(path)
            most = min(linear.weight.shape)
            if self.rank > most:
                raise RecipeError(
                    f"student.start.rank = {self.rank}: {path} of the teacher has "
                    f"{' x '.join(map(str, linear.weight.shape))} numbers, and a rank up to {most}; choose a smaller "
                    "one."
                )
            parametrize.register_parametrization(linear, "weight", Factorised(self.rank))
        setattr(model.config, RANK_KEY, self.rank)


class Factorised(nn.Module):
    """The weight U V of a linear map; U and V are the parameters of the parametrized module."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, left_pr: Tensor, right_rq: Tensor) -> Tensor:
        return left_pr @ right_rq

    def right_inverse(self, weight_pq: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of the best product of this rank, with singular values divided between them."""
        left, values_r, right = torch.linalg.svd(weight_pq, full_matrices=False)
        roots_r = values_r[: self.rank].sqrt()
        return left[:, : self.rank] * roots_r, roots_r[:, None] * right[: self.rank]
