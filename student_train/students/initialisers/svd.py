"""Initialise a fresh student's word embeddings with its teacher's, compressed to the student's width.

XtremeDistil initialises students in this way (Mukherjee & Awadallah 2020, arXiv 2004.05686). Here it is the truncated
SVD of the centred matrix. Its error is never larger than that of the SVD of the plain matrix, because a mean and r
directions can represent everything that r directions can. For MiniLM's embeddings (384 wide), 64, 128 and 256
directions leave 54.7, 33.8 and 10.9% of the squared length, against 54.8, 33.9 and 10.9%: a small difference there,
and a larger one if the mean is large. The student does not get the mean: it is the same for all words, so a bias can
replace it.

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
    """Fill `table` [K, E] with the teacher's embeddings of the ids `kept_ids_K`, or of the ids 0, 1, ... if it is None.

    Rows for ids that the teacher's matrix does not have are unchanged. The others are scaled by one factor, so that
    their root mean square is that of the random rows: the modules after the table (position embeddings, a norm, gates)
    are initialised for embeddings of this size, and the teacher's may be several times larger or smaller.

    Raises:
        RecipeError: if the student's embeddings are wider than the teacher's.
    """
    rows_KD = teacher_VD[: len(table.weight)] if kept_ids_K is None else teacher_VD[kept_ids_K]
    begun_KE = compress(rows_KD, table.weight.shape[1])
    random_KE = table.weight[: len(begun_KE)]
    random_KE.copy_(begun_KE * (_root_mean_square(random_KE) / _root_mean_square(begun_KE)))


def compress(rows_KD: Tensor, width: int) -> Tensor:
    """float32 coordinates_KE of the centred rows along the `width` directions of largest variance.

    No other map to this number of dimensions preserves more of the distances between rows (Eckart & Young 1936). The
    signs of the directions are fixed, so that the same rows give the same coordinates. Rows that already have this
    width are returned unchanged.

    Raises:
        RecipeError: if `width` is larger than the width of the rows.
    """
    teacher_width = rows_KD.shape[1]
    if width > teacher_width:
        raise RecipeError(
            f"student.embeddings = 'svd': the student's word embeddings are {width} wide, but the teacher's "
            f"{teacher_width}, and can only be made narrower; choose a width up to {teacher_width}, or 'random'."
        )
    if width == teacher_width:
        return rows_KD.float()
    mean_D, basis_ED = principal_components(rows_KD, width)
    return (rows_KD.float() - mean_D) @ basis_ED.T


def _root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()
