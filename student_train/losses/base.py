"""What a loss is: what it needs of the dump, and a number for what the student says where the teacher said something.

Shapes: N recorded positions, T tokens without padding.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from shared.dump.codecs import Targets
from shared.errors import RecipeError
from student_train.data.sources import Source
from student_train.forward.attention import Attended
from student_train.forward.sliced_logits import SlicedLogits
from student_train.forward.teacher_vectors import TeacherVectors


@dataclass(frozen=True)
class Said:
    """What the student says about a batch: logits_NV at the recorded positions (of a vocabulary `sliced`: made for
    some at a time), and its hidden states at all T tokens. `hidden_TD[i]` counts as transformers' hidden_states; empty
    where no loss asks for them. `overwrite`: logits_NV may be used up. `attended` is what attention works with in the
    layers that a loss asks for, by the number as the loss has it. `lengths` are the tokens of each row, which lie one
    after the other in the T tokens.
    """

    logits_NV: Tensor | None
    hidden_TD: tuple[Tensor, ...]
    sliced: SlicedLogits | None = None
    overwrite: bool = False
    attended: dict[int, Attended] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()

    @property
    def has_logits(self) -> bool:
        """Whether it says anything about distributions."""
        return self.logits_NV is not None or self.sliced is not None

    @property
    def positions(self) -> int:
        """How many recorded positions it is about."""
        said = self.logits_NV if self.sliced is None else self.sliced.states_ND
        return 0 if said is None else len(said)

    def every(self, step: int) -> "Said":
        """Of the first position, and of each `step`-th after it: the logits alone."""
        if self.sliced is not None:
            return Said(None, (), replace(self.sliced, states_ND=self.sliced.states_ND[::step]))
        return Said(None if self.logits_NV is None else self.logits_NV[::step], ())

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Runs of positions and their logits, to look at; all at once where they are there."""
        if self.sliced is not None:
            yield from self.sliced.parts()
        elif self.logits_NV is not None:
            yield slice(0, len(self.logits_NV)), self.logits_NV


@dataclass(frozen=True)
class Heard:
    """What it should have said: the teacher's distributions, its vectors (by signal, still codes), gold labels_N.
    `is_ragged`: distributions have different numbers of classes, filled up with -inf (see spans.py)."""

    targets: Targets | None
    vectors: dict[str, TeacherVectors]
    labels_N: Tensor
    is_ragged: bool = False

    def part(self, positions: slice) -> "Heard":
        """The distributions and labels of some positions."""
        targets = None if self.targets is None else self.targets.part(positions)
        return Heard(targets, {}, self.labels_N[positions], self.is_ragged)


class Loss(BaseModel, ABC):
    model_config = ConfigDict(frozen=True, extra="forbid")

    # Whether it looks at the logits alone, position by position, so that they can come in slices.
    by_position: ClassVar[bool] = False

    weight: float = Field(default=1.0, gt=0)

    @property
    def label(self) -> str:
        """Its name in logs."""
        return str(getattr(self, "kind", ""))

    @property
    def signal(self) -> str | None:
        """The signal whose columns it reads, if any."""
        return "distribution"

    @property
    def student_layers(self) -> tuple[int, ...]:
        """The student's layers whose hidden states it looks at."""
        return ()

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The student's layers whose queries, keys and values it looks at."""
        return ()

    def signals(self, available: Collection[str]) -> tuple[str, ...]:
        """The signals whose columns it reads, of those that there are."""
        return (self.signal,) if self.signal is not None else ()

    def check_student(self, source: Source, student: nn.Module) -> None:
        """Raises RecipeError where the student lacks what this loss needs."""

    def check(self, source: Source) -> None:
        """Raises RecipeError where the source lacks what this loss needs."""
        if self.signal is not None and self.signal not in source.signals:
            have = ", ".join(source.signals) or "only gold labels (no dump is named)"
            raise RecipeError(
                f"the loss {self.label!r} needs the signal {self.signal!r}, which {source.name} lacks; it has {have}. "
                "Dump again with this signal, or leave the loss out."
            )

    def counted(self, labels_N: Tensor) -> Tensor:
        """How many of these recorded positions its value is the mean over: all, unless it says otherwise."""
        return torch.tensor(len(labels_N), device=labels_N.device)

    def count(self, batch: dict[str, Any]) -> int:
        """How many places of a batch its value is the mean over: recorded positions, unless it says otherwise."""
        return int(self.counted(batch["labels"]))

    @abstractmethod
    def value(self, said: Said, heard: Heard, projection: nn.Module | None) -> Tensor:
        """The loss over one batch, a mean, not yet weighted."""
