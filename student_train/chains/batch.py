"""The chains of a batch: the recorded positions of each row, from flat tensors to padded ones and back.

Shapes: N recorded positions, B rows, R rows with any position, L positions of the longest, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from student_train.chains.crf import CRF, IMPOSSIBLE, Transitions
from student_train.chains.schemes import legality_of


@lru_cache(maxsize=16)
def legal_transitions(names: Sequence[str]) -> Transitions:
    """Scores of 0 for the transitions that keep to the scheme of these label names, and IMPOSSIBLE for the others.

    All are 0 if the names follow no scheme.
    """
    legality = legality_of(names)
    if legality is None:
        return Transitions(torch.zeros(len(names), len(names)), torch.zeros(len(names)), torch.zeros(len(names)))
    legal = legality.between_CC, legality.first_C, legality.last_C
    return Transitions(*(torch.zeros(each.shape).masked_fill(~torch.from_numpy(each), IMPOSSIBLE) for each in legal))


@dataclass(frozen=True)
class Chains:
    """The rows of a batch as chains.

    Attributes:
        counts_B: int64, the number of recorded positions of each row; they lie one row after the other.
        legal: scores of the transitions of a model that has learnt none.
    """

    counts_B: Tensor
    legal: Transitions

    def crf(self, logits_NC: Tensor, learnt: Transitions | None, temperature: float = 1.0) -> CRF:
        """The distributions over the rows' paths, in float32 or wider; rows without a position are left out.

        Emissions are log-softmax values: constants of a position change no distribution, and without them log Z is
        small, and therefore exact.

        Args:
            learnt: the model's transitions; without them those that are legal score 0, and the others are impossible.
            temperature: what all scores are divided by.
        """
        wide_NC = logits_NC.to(torch.promote_types(logits_NC.dtype, torch.float32))
        emissions_RLC = self.padded(wide_NC.log_softmax(-1) / temperature)
        transitions = self.legal if learnt is None else learnt.times(1 / temperature)
        return CRF(emissions_RLC, self._lengths_R, transitions.like(emissions_RLC))

    def padded(self, values_N: Tensor) -> Tensor:
        """Values of the positions, [N, ...], as [R, L, ...] with zeros at padding."""
        return pad_sequence(values_N.split(self._lengths_R.tolist()), batch_first=True)

    def flat(self, values_RL: Tensor) -> Tensor:
        """The values of all positions [N, ...], from padded ones [R, L, ...]."""
        at_L = torch.arange(values_RL.shape[1], device=values_RL.device)
        return values_RL[at_L < self._lengths_R[:, None]]

    @cached_property
    def _lengths_R(self) -> Tensor:
        return self.counts_B[self.counts_B > 0]


def viterbi(logits_NC: Tensor, chains: Chains, learnt: Transitions | None) -> Tensor:
    """The classes [N] of the most probable path of each row, by a model's transitions and those that are legal."""
    if not len(logits_NC):
        return logits_NC.argmax(-1)
    crf = chains.crf(logits_NC, learnt)
    legal = chains.legal.like(crf.emissions_BLC)
    transitions = legal if learnt is None else legal.plus(crf.transitions)
    paths_R1L, _ = CRF(crf.emissions_BLC, crf.lengths_B, transitions).best_paths(1)
    return chains.flat(paths_R1L.squeeze(1))
