"""Formulas of the losses on distributions over paths; each gives a value for every chain, not divided by its length.

Shapes: B chains, L positions of the longest, C classes, K paths.
"""

import torch
from torch import Tensor

from student_train.chains.crf import CRF


def structural_kl(student: CRF, teacher: CRF) -> Tensor:
    """KL(teacher || student) [B] between distributions over whole paths.

    Wang et al. 2021, "Structural Knowledge Distillation" (arXiv 2010.05010): the cross-entropy of two CRFs is a sum
    over edges, -sum_t sum_y,y' P_teacher(y_t, y_t+1) s_student(y, y') + log Z_student. It is larger than the KL by the
    teacher's entropy, which is such a sum, too. Both have the same gradient.
    """
    marginals = teacher.marginals()
    with torch.no_grad():
        teacher_B = teacher.expected_scores(marginals) - marginals.log_z_B
    return teacher_B - (student.expected_scores(marginals) - student.log_partition())


def k_best_nll(student: CRF, paths_BKL: Tensor, scores_BK: Tensor) -> Tensor:
    """The student's negative log-likelihood [B] of the teacher's best paths, weighted by the softmax of their scores.

    Zhou et al. 2021, "Multi-Grained Knowledge Distillation for Named Entity Recognition" (NAACL 2021). A path with the
    score -inf has no weight.
    """
    expected_B = (scores_BK.softmax(-1) * student.path_scores(paths_BKL)).sum(-1)
    return student.log_partition() - expected_B


def lattice_nll(student: CRF, is_allowed_BLC: Tensor) -> Tensor:
    """The student's negative log-likelihood [B] of all paths with these classes together.

    With the classes that occur at each position of the teacher's best paths, it is the "fuzzy" learning of Zhou et al.
    2021; with gold labels where they are known and all classes elsewhere, the likelihood of the known labels.
    """
    return student.log_partition() - student.within(is_allowed_BLC).log_partition()


def lattice_of(paths_BKL: Tensor, scores_BK: Tensor, classes: int) -> Tensor:
    """Which classes occur at each position, bool [B, L, C], in the paths that have any weight."""
    has_weight_BK1 = (scores_BK.softmax(-1) > 0)[..., None]
    first_B1L = paths_BKL[:, :1]
    counted_BKL = paths_BKL.where(has_weight_BK1, first_B1L)
    is_allowed_BCL = torch.zeros(len(paths_BKL), classes, paths_BKL.shape[-1], dtype=torch.bool).to(paths_BKL.device)
    return is_allowed_BCL.scatter(1, counted_BKL, True).transpose(1, 2)
