"""A fresh student's word embeddings from its teacher's, compressed to the student's width.

The students of XtremeDistil begin so (Mukherjee & Awadallah 2020, arXiv 2004.05686). Here it is the truncated SVD of
the centred matrix, which never leaves more than the plain one: a mean and r directions can stand for whatever r
directions can. Of MiniLM's embeddings (384 wide) 64, 128 and 256 directions leave 54.7, 33.8 and 10.9% of the squared
length, against 54.8, 33.9 and 10.9%: little there, more where the mean is large. The student does not get the mean,
which is the same for all words, so that a bias makes up for it.

Shapes: V ids of the teacher's vocabulary, K rows of the student's table, D the teacher's width, E the student's.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.dump.codecs.vectors.principal import principal_components
from shared.errors import RecipeError
from student_train.students.initialisers.base import Initialiser
from student_train.students.needs import Needs


class SVD(Initialiser):
    """The teacher's word embeddings, compressed to the student's width."""

    needs_word_embeddings = True

    kind: Literal["svd"] = "svd"

    def initialise(self, model: PreTrainedModel, needs: Needs) -> None:
        assert needs.word_embeddings_VD is not None
        begin_embeddings(model.get_input_embeddings(), needs.word_embeddings_VD, needs.kept_ids_K)


@torch.no_grad()
def begin_embeddings(table: nn.Embedding, teacher_VD: Tensor, kept_ids_K: Tensor | None) -> None:
    """Fill `table` [K, E] with the teacher's embeddings of the ids `kept_ids_K`, or of the ids 0, 1, ... without these.

    Rows for ids that the teacher's matrix does not have keep what is in them. All are scaled by one factor, so that
    their root mean square is what the random rows had: whatever comes after the table, positions that are added, a
    norm, gates, was made for words of that size, and a teacher's may be several times as large or small.

    Raises:
        RecipeError: where the student's embeddings are wider than the teacher's.
    """
    rows_KD = teacher_VD[: len(table.weight)] if kept_ids_K is None else teacher_VD[kept_ids_K]
    begun_KE = compress(rows_KD, table.weight.shape[1])
    random_KE = table.weight[: len(begun_KE)]
    random_KE.copy_(begun_KE * (_root_mean_square(random_KE) / _root_mean_square(begun_KE)))


def compress(rows_KD: Tensor, width: int) -> Tensor:
    """float32 coordinates_KE of the rows along the `width` directions of largest variance, from their mean.

    No map to so many dimensions keeps more of the distances between rows (Eckart & Young 1936). The directions' signs
    are fixed, so that the same rows give the same coordinates. Rows of that very width are left as they are.

    Raises:
        RecipeError: for more directions than the rows have.
    """
    teacher_width = rows_KD.shape[1]
    if width > teacher_width:
        raise RecipeError(
            f"student.embeddings = 'svd': the student's word embeddings are {width} wide and the teacher's "
            f"{teacher_width}, which can only be made narrower; choose a width up to {teacher_width}, or 'random'."
        )
    if width == teacher_width:
        return rows_KD.float()
    mean_D, basis_ED = principal_components(rows_KD, width)
    return (rows_KD.float() - mean_D) @ basis_ED.T


def _root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()
