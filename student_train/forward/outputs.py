"""What losses compare: a student's outputs over a batch, and the targets that it should have reached.

Shapes: N recorded positions, T tokens without padding, V vocabulary or classes, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from shared.dump.codecs import Targets
from shared.dump.signals import SignalKey
from student_train.forward.attention import Attended
from student_train.forward.sliced_logits import SlicedLogits
from student_train.forward.teacher_vectors import TeacherVectors


@dataclass(frozen=True)
class Outputs:
    """A student's outputs over a batch.

    Attributes:
        logits_NV: at the recorded positions; None where there are none, or where they are `sliced`.
        hidden_TD: hidden states at all tokens, numbered as transformers' hidden_states; empty where no loss needs them.
        sliced: logits of a vocabulary, made for some positions at a time.
        overwrite: whether logits_NV may be used up, because nobody looks at them afterwards.
        attended: what attention works with in the layers that a loss needs, by the number as the loss has it.
        lengths: tokens of each row; rows lie one after the other in the T tokens.
    """

    logits_NV: Tensor | None
    hidden_TD: tuple[Tensor, ...]
    sliced: SlicedLogits | None = None
    overwrite: bool = False
    attended: dict[int, Attended] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()

    @property
    def has_logits(self) -> bool:
        """Whether there are any distributions."""
        return self.logits_NV is not None or self.sliced is not None

    @property
    def positions(self) -> int:
        """How many recorded positions there are."""
        found = self.logits_NV if self.sliced is None else self.sliced.states_ND
        return 0 if found is None else len(found)

    def every(self, step: int) -> "Outputs":
        """Those of the first position and of each `step`-th after it: the logits alone."""
        if self.sliced is not None:
            return Outputs(None, (), replace(self.sliced, states_ND=self.sliced.states_ND[::step]))
        return Outputs(None if self.logits_NV is None else self.logits_NV[::step], ())

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Runs of positions and their logits, without gradients; all at once where they are there."""
        if self.sliced is not None:
            yield from self.sliced.parts()
        elif self.logits_NV is not None:
            yield slice(0, len(self.logits_NV)), self.logits_NV


@dataclass(frozen=True)
class BatchTargets:
    """What a student's outputs over a batch are compared with.

    Attributes:
        distributions: the teacher's, decoded; None where the batch carries none.
        vectors: the teacher's, by what they are of, still encoded.
        labels_N: gold labels, -100 where missing.
        is_ragged: whether distributions have different numbers of classes, filled up with -inf.
    """

    distributions: Targets | None
    vectors: dict[SignalKey, TeacherVectors]
    labels_N: Tensor
    is_ragged: bool = False

    def part(self, positions: slice) -> "BatchTargets":
        """The distributions and labels of some positions."""
        distributions = None if self.distributions is None else self.distributions.part(positions)
        return BatchTargets(distributions, {}, self.labels_N[positions], self.is_ragged)
