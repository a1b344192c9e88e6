"""Losses on the tags of a whole row: distributions over paths, from stored logits.

A teacher without a CRF gives log-softmax values as emissions, and the transitions that its label names allow (BIO). The
student's transitions are its own (`crf = true`), or those that are legal, too.

Every value is a sum over rows divided by the number of recorded positions, so that weights compare with those of losses
on single positions. (If all transitions score 0, "structure" is the loss "kl".)

Such students are to be decoded by Viterbi: their distributions of single words alone are no longer the teacher's.

Shapes: N recorded positions, R rows, L positions of the longest, C classes, K paths.
"""

from abc import ABC
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.dump.rowgroup import MISSING
from shared.errors import RecipeError
from shared.numbers import Factor
from student_train.chains.batch import Chains
from student_train.chains.crf import CRF
from student_train.chains.transitions import transitions_of
from student_train.data.sources import Source
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.losses.base import Loss
from student_train.losses.structure.formulas import k_best_nll, lattice_nll, lattice_of, structural_kl

Paths = Annotated[int, Field(ge=1, le=100)]


class _PathsLoss(Loss, ABC):
    """What losses on paths have in common."""

    trains_head: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        if not source.has_chains:
            able = source.task.chain_positions
            found = f"records {source.positions!r} positions" if able else f"is of the task {source.task.name}"
            raise RecipeError(
                f"the loss {self.label!r} needs a tag for each word (token-classification at first-subtoken "
                f"positions), but {source.name} {found}; choose another loss."
            )
        super().check(source)
        if self.signal is not None and not source.has_dense_logits:
            raise RecipeError(
                f"the loss {self.label!r} needs all logits, but {source.name} keeps only some of them; dump again with "
                "--dense, or use the loss 'kl'."
            )


class StructureLoss(_PathsLoss):
    """KL(teacher || student) between the distributions over all paths of a row, exact (arXiv 2010.05010).

    It differs from the paper's cross-entropy by the teacher's entropy, a constant. Scores are divided by `temperature`,
    and the value is multiplied by its square, as in the loss "kl".
    """

    kind: Literal["structure"] = "structure"
    temperature: Factor = 1.0

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        if not len(targets.labels_N):
            return _nothing(outputs)
        student, teacher = _crfs(outputs, targets, self.temperature)
        return structural_kl(student, teacher).sum() / len(targets.labels_N) * self.temperature**2


class KBestLoss(_PathsLoss):
    """Negative log-likelihood of the teacher's k best paths, weighted by their probabilities (Zhou et al. 2021).

    With `fuzzy`, plus that of all paths together that can be made of the tags which occur in them at each word.
    """

    kind: Literal["k-best"] = "k-best"
    k: Paths = 5
    fuzzy: bool = False

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        if not len(targets.labels_N):
            return _nothing(outputs)
        student, teacher = _crfs(outputs, targets)
        paths_RKL, scores_RK = teacher.best_paths(self.k)
        values_R = k_best_nll(student, paths_RKL, scores_RK)
        if self.fuzzy:
            classes = student.emissions_BLC.shape[-1]
            values_R = values_R + lattice_nll(student, lattice_of(paths_RKL, scores_RK, classes))
        return values_R.sum() / len(targets.labels_N)


class CRFGoldLoss(_PathsLoss):
    """Negative log-likelihood of the gold tags for a student with transitions of its own.

    A row with unknown tags counts with the probability of those that are known. The mean is over known tags.
    """

    has_teacher: ClassVar[bool] = False

    kind: Literal["crf-gold"] = "crf-gold"

    @property
    def signal(self) -> None:
        return None

    def check(self, source: Source) -> None:
        super().check(source)
        if not source.has_gold:
            raise RecipeError(
                f"the loss 'crf-gold' needs gold labels, but {source.name} has none; dump a file with a column of "
                "tags, or leave the loss out."
            )

    def check_student(self, source: Source, student: PreTrainedModel) -> None:
        if transitions_of(student) is None:
            raise RecipeError(
                "the loss 'crf-gold' needs a student with transitions of its own; set crf = true in [student], or use "
                "the loss 'gold'."
            )

    def counted(self, labels_N: Tensor) -> Tensor:
        return (labels_N != MISSING).sum()

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        labels_N = targets.labels_N
        if not len(labels_N):
            return _nothing(outputs)
        student, chains = _student(outputs, targets)
        classes_C = torch.arange(student.emissions_BLC.shape[-1], device=labels_N.device)
        is_allowed_NC = (labels_N == MISSING)[:, None] | (labels_N[:, None] == classes_C)
        values_R = lattice_nll(student, chains.padded(is_allowed_NC))
        return values_R.sum() / self.counted(labels_N).clamp(min=1)


def _student(outputs: Outputs, targets: BatchTargets, temperature: float = 1.0) -> tuple[CRF, Chains]:
    assert outputs.logits_NV is not None
    assert targets.chains is not None
    return targets.chains.crf(outputs.logits_NV, outputs.transitions, temperature), targets.chains


def _crfs(outputs: Outputs, targets: BatchTargets, temperature: float = 1.0) -> tuple[CRF, CRF]:
    """The distributions of the student and of the teacher."""
    student, chains = _student(outputs, targets, temperature)
    assert targets.distributions is not None
    assert targets.distributions.has_all_logits
    return student, chains.crf(targets.distributions.logits_NV, None, temperature)


def _nothing(outputs: Outputs) -> Tensor:
    """0, as a part of the student's graph: the loss of a batch whose rows have no words."""
    assert outputs.logits_NV is not None
    return outputs.logits_NV.sum()
