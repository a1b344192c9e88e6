"""Distributions at some positions, in the form from which rules choose ids.

Shapes: N positions, V vocabulary, B blocks (see blocks.py), E ids of all positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shared.dump.codecs.base import refuse_broken
from shared.dump.codecs.selection import blocks


@dataclass(frozen=True)
class Softmax:
    """Distributions of N positions: p = mass_NV / total_N1.

    Attributes:
        logits_NV: float32, as given.
        maxima_NB: the largest logit of each block.
        best_N1: the most probable id, the smallest of equally probable ones.
        largest_N1: its logit.
        mass_NV: float32, p up to rounding. `without` changes it in place.
        sums_NB: float64, mass of each block. `without` changes it in place.
        total_N1: float64, mass of all ids.
        log_total_N1: float32, log of the sum of exp(logit - largest logit).
    """

    logits_NV: Tensor
    maxima_NB: Tensor
    best_N1: Tensor
    largest_N1: Tensor
    mass_NV: Tensor
    sums_NB: Tensor
    total_N1: Tensor
    log_total_N1: Tensor

    @classmethod
    def of(cls, logits_NV: Tensor) -> "Softmax":
        """Compute the distributions of float32 logits [N, V], V >= 1.

        Raises:
            NotFiniteError: for NaN or +infinity, or if all logits of a position are -infinity.
        """
        maxima_NB = blocks.maxima(logits_NV)
        largest_N1, block_N1 = maxima_NB.max(-1, keepdim=True)
        refuse_broken(~largest_N1.isfinite().squeeze(-1))
        rows_N = torch.arange(len(logits_NV), device=logits_NV.device)
        logits_NS = blocks.gather(logits_NV, rows_N, block_N1.squeeze(-1), -torch.inf)
        best_N1 = block_N1 * blocks.SIZE + logits_NS.argmax(-1, keepdim=True)
        # torch.softmax is twice as fast as exp alone. It sums in float32, so its total is only approximately 1.
        mass_NV = logits_NV.softmax(-1)
        sums_NB = blocks.sums(mass_NV)
        total_N1 = sums_NB.sum(-1, keepdim=True)
        log_total_N1 = (total_N1 / mass_NV.gather(-1, best_N1)).log().float()
        return cls(logits_NV, maxima_NB, best_N1, largest_N1, mass_NV, sums_NB, total_N1, log_total_N1)

    def log_sum(self, temperature: float) -> Tensor:
        """Return the log of the sum over V of p ** (1 / temperature), float32 [N]."""
        mass_NV = (self.logits_NV - self.largest_N1).div_(temperature).softmax(-1)
        total_N1 = blocks.sums(mass_NV).sum(-1, keepdim=True) / mass_NV.gather(-1, self.best_N1)
        return (total_N1.log().float() - self.log_total_N1 / temperature).squeeze(-1)

    def entropy(self) -> Tensor:
        """Return the entropies in nats, float32 [N]."""
        shifted_NV = self.logits_NV - self.largest_N1
        # A class that is ruled out has no mass, and 0 * log 0 is 0.
        mean_N1 = (self.mass_NV * shifted_NV.clamp_(min=-1e30)).sum(-1, keepdim=True) / self.total_N1
        return (self.log_total_N1 - mean_N1).clamp(min=0).float().squeeze(-1)

    def log_probs(self, owners_E: Tensor, ids_E: Tensor) -> Tensor:
        """Return the log-probabilities of ids at the positions `owners_E`, float32 [E]."""
        # Relative to the largest logit, because at logits around 10,000 float32 rounds to multiples of about 0.001.
        shifted_E = self.logits_NV[owners_E, ids_E] - self.largest_N1.squeeze(-1)[owners_E]
        return shifted_E - self.log_total_N1.squeeze(-1)[owners_E]

    def without(self, owners_E: Tensor, ids_E: Tensor, most: int) -> "Rest":
        """Return the distributions without these ids, at most `most` per position.

        It changes `mass_NV` and `sums_NB` in place, so call it once, and last.
        """
        self.mass_NV.view(-1).index_fill_(0, owners_E * self.mass_NV.shape[-1] + ids_E, 0.0)
        # Sum all blocks again, or only the changed ones if they are few. This choice must not depend on the number of
        # ids in the batch: the sums may differ in the last bit, and then other ids may be drawn.
        if 16 * most >= self.sums_NB.shape[-1]:
            return Rest(self.mass_NV, blocks.sums(self.mass_NV), self.total_N1)
        blocks_E = ids_E // blocks.SIZE
        changed_ES = blocks.gather(self.mass_NV, owners_E, blocks_E, 0.0)
        self.sums_NB[owners_E, blocks_E] = changed_ES.sum(-1).double()
        return Rest(self.mass_NV, self.sums_NB, self.total_N1)


@dataclass(frozen=True)
class Rest:
    """The ids of N distributions that are not kept exactly, p = mass_NV / total_N1.

    Their mass is summed, because with a confident teacher 1 - (the kept mass) would lose it to rounding.

    Attributes:
        mass_NV: float32; 0 for ids that are kept exactly.
        sums_NB: float64, mass of each block.
        total_N1: float64, mass of all ids, including those that are kept exactly.
    """

    mass_NV: Tensor
    sums_NB: Tensor
    total_N1: Tensor

    @property
    def log_mass_N(self) -> Tensor:
        """The log of the remaining probability, float32 [N]; -inf if nothing remains."""
        return (self.sums_NB.sum(-1, keepdim=True) / self.total_N1).log().float().squeeze(-1)
