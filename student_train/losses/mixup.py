"""The losses of MixKD (Liang et al. 2021, arXiv 2011.00593): a student reads mixtures of rows, and is compared with the
teacher's logits for the same mixtures, or with the mixed gold labels.

Shapes: M mixtures, C classes.
"""

from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.dump.rowgroup import MISSING
from shared.dump.signals import MIXTURES, SignalKey
from shared.errors import RecipeError
from shared.models.mixing import takes_embeddings
from shared.numbers import Factor
from student_train.data.batch import Batch
from student_train.data.sources import Source
from student_train.forward.evaluating import evaluating
from student_train.forward.outputs import BatchTargets, Outputs
from student_train.losses import formulas
from student_train.losses.base import Loss


class MixupLoss(Loss):
    """A loss on mixtures of rows: lambda times the word embeddings of one, 1 - lambda times those of another.

    With `target = "teacher"`, the student's logits for a mixture are compared with the teacher's: by the mean squared
    difference (`metric = "mse"`, MixKD's and the default), or by KL(teacher || student) at a `temperature` ("kl").
    With `target = "gold"` it is the cross-entropy with lambda times the row's gold label and 1 - lambda times the
    partner's, over the mixtures of which both are known.

    In each epoch a row is mixed with the partner of another of the dump's draws. Losses on mixtures share one forward
    pass.
    """

    trains_head = True
    needs_mixtures = True

    kind: Literal["mixup"] = "mixup"
    target: Literal["teacher", "gold"] = "teacher"
    metric: Literal["mse", "kl"] | None = None
    temperature: Factor | None = None

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        if self.target == "gold" and self.metric is not None:
            raise ValueError('metric is for target = "teacher"; with "gold" it is the cross-entropy; leave metric out')
        if self.temperature is not None and self.metric != "kl":
            raise ValueError('temperature is for metric = "kl"; leave it out')
        return self

    @property
    def label(self) -> str:
        return self.kind if self.target == "teacher" else f"{self.kind}.gold"

    @property
    def signal(self) -> SignalKey:
        return SignalKey(MIXTURES)

    def check(self, source: Source) -> None:
        if source.mixtures is None:
            raise RecipeError(
                f"the loss {self.kind!r} needs the teacher's logits for mixtures of rows, which {source.name} lacks; "
                "dump again with --mixup DRAWS, or leave the loss out."
            )
        if self.target == "gold" and not source.has_gold:
            raise RecipeError(
                f'the loss {self.kind!r} with target = "gold" needs gold labels, but {source.name} has none; dump a '
                "file with a label column, or leave the loss out."
            )

    def check_student(self, source: Source, student: PreTrainedModel) -> None:
        with evaluating(student):
            if not takes_embeddings(student):
                raise RecipeError(
                    f"the loss {self.kind!r} mixes word embeddings, but {type(student).__name__} does not give a row's "
                    "logits for its embeddings in place of its token ids (models that classify by a row's last token, "
                    "and encoder-decoders, do not); choose another student, or leave the loss out."
                )

    def count(self, batch: Batch) -> int:
        if batch.mixed is None:
            return 0
        return int(_is_compared(self.target, batch.mixed.labels).sum())

    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        logits_MC, mixed = outputs.mixed_MC, targets.mixed
        if logits_MC is None or mixed is None:  # no row of the batch has a partner among the rows of the stage
            assert outputs.logits_NV is not None
            return 0 * outputs.logits_NV.sum()
        if self.target == "gold":
            return formulas.mixed_cross_entropy(logits_MC, mixed.labels_M2, mixed.weights_M)
        if self.metric == "kl":
            return formulas.kl_dense(logits_MC, mixed.logits_MC, self.temperature or 1.0)
        return formulas.logits_mse(logits_MC, mixed.logits_MC)


def _is_compared(target: str, labels_M2: Tensor) -> Tensor:
    """Which mixtures are terms of the mean, bool [M]."""
    return (labels_M2 != MISSING).all(1) | torch.tensor(target != "gold")
