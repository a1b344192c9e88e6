"""What losses compare: a student's outputs for a batch, and the batch's targets.

Shapes: N recorded positions, T tokens without padding, V vocabulary or classes, D width, M mixtures, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from shared.dump.codecs import Targets
from shared.dump.signals import SignalKey
from student_train.chains.batch import Chains
from student_train.chains.crf import Transitions
from student_train.forward.attention import Attended
from student_train.forward.sliced_logits import SlicedLogits
from student_train.forward.teacher_vectors import TeacherVectors


@dataclass(frozen=True)
class Outputs:
    """A student's outputs for a batch.

    Attributes:
        logits_NV: logits at the recorded positions; None if there are none, or if they are `sliced`.
        hidden_TD: hidden states of each layer at all tokens, numbered like transformers' `hidden_states`; empty if no
            loss needs them.
        sliced: logits of a vocabulary, computed for some positions at a time.
        overwrite: whether a loss may overwrite logits_NV, because nothing reads them afterwards.
        attended: layer number as a loss gives it -> queries, keys and values of that layer.
        mixed_MC: logits for mixtures of rows; None if no loss needs them, or the batch has none.
        lengths: tokens of each row; rows lie one after the other in the T tokens. Empty if no loss needs hidden states.
        transitions: a tagger's learnt scores of transitions between tags; None if it has none.
    """

    logits_NV: Tensor | None
    hidden_TD: tuple[Tensor, ...]
    sliced: SlicedLogits | None = None
    overwrite: bool = False
    attended: dict[int, Attended] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    transitions: Transitions | None = None
    mixed_MC: Tensor | None = None

    @property
    def has_logits(self) -> bool:
        """Whether there are logits, sliced or not."""
        return self.logits_NV is not None or self.sliced is not None

    @property
    def positions(self) -> int:
        """The number N of recorded positions."""
        found = self.logits_NV if self.sliced is None else self.sliced.states_ND
        return 0 if found is None else len(found)

    def every(self, step: int) -> "Outputs":
        """Return the logits alone, of the first position and every `step`-th position after it."""
        if self.sliced is not None:
            return Outputs(None, (), replace(self.sliced, states_ND=self.sliced.states_ND[::step]))
        return Outputs(None if self.logits_NV is None else self.logits_NV[::step], ())

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of positions and their logits, without gradients if sliced; all at once otherwise."""
        if self.sliced is not None:
            yield from self.sliced.parts()
        elif self.logits_NV is not None:
            yield slice(0, len(self.logits_NV)), self.logits_NV


@dataclass(frozen=True)
class MixedTargets:
    """The targets for M mixtures of rows.

    Attributes:
        logits_MC: the teacher's logits.
        weights_M: lambda, the weight of the first row.
        labels_M2: the gold labels of both rows, -100 where missing.
    """

    logits_MC: Tensor
    weights_M: Tensor
    labels_M2: Tensor


@dataclass(frozen=True)
class BatchTargets:
    """The targets that a student's outputs for a batch are compared with.

    Attributes:
        distributions: the teacher's distributions, decoded; None if the batch has none.
        vectors: signal -> the teacher's vectors, still encoded.
        labels_N: gold labels, -100 where missing.
        is_ragged: whether distributions have different numbers of classes, padded with -inf.
        chains: which positions are the tags of a row's words; None if they are not.
        is_spare: whether another rank has the batch's rows too, so that they have no weight.
        mixed: the targets for mixtures of rows, if the batch has any.
    """

    distributions: Targets | None
    vectors: dict[SignalKey, TeacherVectors]
    labels_N: Tensor
    is_ragged: bool = False
    chains: Chains | None = None
    is_spare: bool = False
    mixed: MixedTargets | None = None

    def part(self, positions: slice) -> "BatchTargets":
        """Return the distributions and labels of a slice of positions, without vectors and chains."""
        distributions = None if self.distributions is None else self.distributions.part(positions)
        return BatchTargets(distributions, {}, self.labels_N[positions], self.is_ragged)
