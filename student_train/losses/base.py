"""The base of all losses: which signals and parts of the student a loss needs, and its value for outputs and targets.

Shapes: N recorded positions.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.dump.signals import DISTRIBUTION, SignalKey
from shared.errors import RecipeError
from shared.numbers import STRICT, Factor
from student_train.data.batch import Batch
from student_train.data.sources import Source
from student_train.forward.head import StudentHead
from student_train.forward.observe import outputs_of
from student_train.forward.outputs import BatchTargets, Outputs


class Loss(BaseModel, ABC):
    """One loss of a recipe; its fields are the keys of a [[loss]] section.

    To add a kind of loss, write a subclass with a `kind` of its own in a new file, and add it to
    `student_train.losses.specs.LOSSES`.
    """

    model_config = STRICT

    # Whether it is a mean over positions that needs nothing but logits, so that they can come in slices.
    by_position: ClassVar[bool] = False
    # Whether it needs the logits of all positions of a batch at once, so that no loss beside it gets them in slices.
    needs_whole_logits: ClassVar[bool] = False
    # Whether it trains the student's head, so that scores of its predictions mean something.
    trains_head: ClassVar[bool] = False
    # Whether it compares the student with a teacher. (A dump may hold gold labels as well.)
    has_teacher: ClassVar[bool] = True

    # Whether it compares logits for mixtures of rows, which take a forward pass of their own.
    needs_mixtures: ClassVar[bool] = False

    weight: Factor = 1.0
    kind: str

    @property
    def label(self) -> str:
        """The name of the loss in logs."""
        return self.kind

    @property
    def signal(self) -> SignalKey | None:
        """The signal that it needs and whose columns it reads, if any."""
        return SignalKey(DISTRIBUTION)

    @property
    def student_layers(self) -> tuple[int, ...]:
        """The layers of the student whose hidden states it needs."""
        return ()

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers of the student whose queries, keys and values it needs."""
        return ()

    def signals(self, available: Collection[SignalKey]) -> tuple[SignalKey, ...]:
        """Return the signals whose columns it reads, out of those that are available."""
        return (self.signal,) if self.signal is not None else ()

    def check(self, source: Source) -> None:
        """Check the source. Raises RecipeError if it lacks what this loss needs."""
        if self.signal is not None and self.signal not in source.signals:
            have = ", ".join(map(str, source.signals)) or "only gold labels (no dump is named)"
            raise RecipeError(
                f"the loss {self.label!r} needs the signal {self.signal.name!r}, which {source.name} lacks; it has "
                f"{have}. Dump again with this signal, or leave the loss out."
            )

    def for_student(self, source: Source, student: PreTrainedModel) -> "Loss":
        """Return the loss with what depends on the student worked out, such as a layer map; by default itself.

        Called once, after `check`, for each run of a stage. Raises RecipeError if source and student do not fit.
        """
        return self

    def check_student(self, source: Source, student: PreTrainedModel) -> None:
        """Check the student. Raises RecipeError if it lacks what this loss needs."""

    def make_projection(self, source: Source, student: PreTrainedModel, where: str) -> nn.Module | None:
        """Return a module that is trained with the student for this loss alone and dropped afterwards, or None.

        Args:
            where: the prefix of the loss's keys in the recipe ("loss.0"), for messages.
        """
        return None

    def counted(self, labels_N: Tensor) -> Tensor:
        """Return how many of these recorded positions are terms of its mean; by default all."""
        return torch.tensor(len(labels_N), device=labels_N.device)

    def count(self, batch: Batch) -> int:
        """Return the number of terms of its mean for a batch; by default recorded positions."""
        return int(self.counted(batch.labels))

    @abstractmethod
    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        """Return the loss for one batch: a mean over terms, not weighted."""


def stored_layers(available: Collection[SignalKey], sites: Collection[str]) -> list[int]:
    """Return the teacher's layers for which one of these sites is recorded, lowest first."""
    return sorted({key.layer for key in available if key.site in sites and key.layer is not None})


def columns_of(losses: Sequence[Loss], source: Source) -> list[str]:
    """Return the codec columns that some losses read."""
    return source.columns_of({key for spec in losses for key in spec.signals(source.signals)})


def can_slice(losses: Sequence[Loss], source: Source) -> bool:
    """Whether the logits that these losses need are those of a vocabulary and may come in slices of positions."""
    return source.task.predicts_vocabulary and not any(spec.needs_whole_logits for spec in losses)


def outputs_for(
    losses: Sequence[Loss], model: nn.Module, batch: Batch, source: Source, head: StudentHead | None = None
) -> Outputs:
    """Return a student's outputs for a batch, with the hidden states, attention layers and mixtures that are needed."""
    wants_hidden = any(spec.student_layers for spec in losses)
    attention_layers = {layer for spec in losses for layer in spec.attention_layers}
    wants_mixed = any(spec.needs_mixtures for spec in losses)
    return outputs_of(model, batch, source, wants_hidden, head, attention_layers, wants_mixed)
