"""What a loss is: what it needs of the dump and of the student, and a number for outputs and targets.

Shapes: N recorded positions.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.dump.signals import DISTRIBUTION, SignalKey
from shared.errors import RecipeError
from student_train.data.batch import Batch
from student_train.data.sources import Source
from student_train.forward.head import StudentHead
from student_train.forward.observe import outputs_of
from student_train.forward.outputs import BatchTargets, Outputs


class Loss(BaseModel, ABC):
    """One loss of a recipe; its fields are the keys of a [[loss]] section.

    A new kind of loss is a subclass with a `kind` of its own, in a file of its own, and an entry in
    `student_train.losses.specs.LOSSES`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Whether it needs the logits alone, position by position, so that they can come in slices.
    by_position: ClassVar[bool] = False
    # Whether it compares the student with a teacher. (Gold labels may come with a dump, too.)
    has_teacher: ClassVar[bool] = True

    weight: float = Field(default=1.0, gt=0)
    kind: str

    @property
    def label(self) -> str:
        """Its name in logs."""
        return self.kind

    @property
    def signal(self) -> SignalKey | None:
        """The signal whose columns it reads, if any."""
        return SignalKey(DISTRIBUTION)

    @property
    def student_layers(self) -> tuple[int, ...]:
        """The student's layers whose hidden states it needs."""
        return ()

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The student's layers whose queries, keys and values it needs."""
        return ()

    def signals(self, available: Collection[SignalKey]) -> tuple[SignalKey, ...]:
        """The signals whose columns it reads, of those that there are."""
        return (self.signal,) if self.signal is not None else ()

    def check(self, source: Source) -> None:
        """Raises RecipeError where the source lacks what this loss needs."""
        if self.signal is not None and self.signal not in source.signals:
            have = ", ".join(map(str, source.signals)) or "only gold labels (no dump is named)"
            raise RecipeError(
                f"the loss {self.label!r} needs the signal {self.signal.name!r}, which {source.name} lacks; it has "
                f"{have}. Dump again with this signal, or leave the loss out."
            )

    def check_student(self, source: Source, student: PreTrainedModel) -> None:
        """Raises RecipeError where the student lacks what this loss needs."""

    def make_projection(self, source: Source, student: PreTrainedModel, where: str) -> nn.Module | None:
        """What is trained along with the student for this loss alone, and dropped afterwards; None for nothing.

        Args:
            where: what the loss's keys begin with in the recipe ("loss.0"), for messages.
        """
        return None

    def counted(self, labels_N: Tensor) -> Tensor:
        """How many of these recorded positions its value is the mean over: all, unless it says otherwise."""
        return torch.tensor(len(labels_N), device=labels_N.device)

    def count(self, batch: Batch) -> int:
        """How many places of a batch its value is the mean over: recorded positions, unless it says otherwise."""
        return int(self.counted(batch.labels))

    @abstractmethod
    def value(self, outputs: Outputs, targets: BatchTargets, projection: nn.Module | None) -> Tensor:
        """The loss over one batch, a mean, not yet weighted."""


def stored_layers(available: Collection[SignalKey], sites: Collection[str]) -> list[int]:
    """The teacher's layers of which one of these sites is recorded, lowest first."""
    return sorted({key.layer for key in available if key.site in sites and key.layer is not None})


def columns_of(losses: Sequence[Loss], source: Source) -> list[str]:
    """The codecs' columns that some losses read."""
    return source.columns_of({key for spec in losses for key in spec.signals(source.signals)})


def outputs_for(
    losses: Sequence[Loss], model: nn.Module, batch: Batch, source: Source, head: StudentHead | None = None
) -> Outputs:
    """A student's outputs over a batch, as far as some losses need them."""
    wants_hidden = any(spec.student_layers for spec in losses)
    attention_layers = {layer for spec in losses for layer in spec.attention_layers}
    return outputs_of(model, batch, source, wants_hidden, head, attention_layers)
