"""Decoded distributions: the targets of a student.

Shapes: N positions, V vocabulary or classes, K most ids of a position, X anything.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class DenseTargets:
    """Distributions with all logits, which are given or computed on demand.

    Attributes:
        kept_NX: the logits or, if `make` is given, the states from which it computes them.
        make: states_ND -> logits_NV.
    """

    has_all_logits: ClassVar[Literal[True]] = True

    kept_NX: Tensor
    make: Callable[[Tensor], Tensor] | None = None

    @cached_property
    def logits_NV(self) -> Tensor:
        """All logits. For a large vocabulary, take a `part` first."""
        return self.kept_NX if self.make is None else self.make(self.kept_NX)

    def part(self, positions: slice) -> "DenseTargets":
        """Return the targets of some positions."""
        return DenseTargets(self.kept_NX[positions], self.make)

    def argmax(self) -> Tensor:
        """Return the teacher's most probable class at each position, [N]."""
        return self.logits_NV.argmax(-1)

    def resized(self, classes: int) -> "DenseTargets":
        """Return the targets for a student's head with `classes` outputs.

        Heads may be padded beyond the tokenizer's entries; a class that the teacher's head lacks gets no mass.
        """
        missing = classes - self.logits_NV.shape[-1]
        return self if missing == 0 else DenseTargets(functional.pad(self.logits_NV, (0, missing), value=-torch.inf))


@dataclass(frozen=True)
class SparseTargets:
    """Distributions with some ids; positions with fewer ids are padded with log-probability -inf.

    Attributes:
        ids_NK: int64, each at most once per position; the ids of padding are meaningless.
        log_probs_NK: log-softmax values over the whole vocabulary; for a sampled id, the log of its weight.
        tail_N: log of the mass outside the exact ids.
        sampled_NK: bool, which ids were sampled from the tail and represent it; None if no ids are sampled.
        log_sums_N: temperature T -> log of the sum over the vocabulary of p ** (1 / T), for the temperatures that the
            dump has.
    """

    has_all_logits: ClassVar[Literal[False]] = False

    ids_NK: Tensor
    log_probs_NK: Tensor
    tail_N: Tensor
    sampled_NK: Tensor | None = None
    log_sums_N: dict[float, Tensor] = field(default_factory=dict)

    def argmax(self) -> Tensor:
        """Return the teacher's most probable id at each position, [N] (if all are drawn, the one drawn most often)."""
        known_NK = self.exact().log_probs_NK
        # A sampled id may have a larger weight than the most probable exact id, because it represents many ids.
        best_N1 = torch.where(
            (known_NK > -torch.inf).any(1, keepdim=True),
            known_NK.argmax(dim=1, keepdim=True),
            self.log_probs_NK.argmax(dim=1, keepdim=True),
        )
        return self.ids_NK.gather(1, best_N1).squeeze(1)

    def part(self, positions: slice) -> "SparseTargets":
        """Return the targets of some positions."""
        return SparseTargets(
            self.ids_NK[positions],
            self.log_probs_NK[positions],
            self.tail_N[positions],
            None if self.sampled_NK is None else self.sampled_NK[positions],
            {temperature: log_sum_N[positions] for temperature, log_sum_N in self.log_sums_N.items()},
        )

    def exact(self) -> "SparseTargets":
        """Return the targets with the exact ids alone; `tail_N` already includes the mass of the sampled ones."""
        if self.sampled_NK is None:
            return self
        known_NK = self.log_probs_NK.masked_fill(self.sampled_NK, -torch.inf)
        return SparseTargets(self.ids_NK, known_NK, self.tail_N, None, self.log_sums_N)

    def resized(self, classes: int) -> "SparseTargets":
        """Return the targets for a student's head with `classes` outputs.

        The mass of an exact id beyond them (padding of the teacher's head) is added to the tail.
        """
        beyond_NK = (self.ids_NK >= classes) & (self.log_probs_NK != -torch.inf)
        ids_NK = self.ids_NK.masked_fill(self.ids_NK >= classes, 0)
        if not beyond_NK.any():
            return SparseTargets(ids_NK, self.log_probs_NK, self.tail_N, self.sampled_NK, self.log_sums_N)
        exact_NK = beyond_NK if self.sampled_NK is None else beyond_NK & ~self.sampled_NK
        joining_N = self.log_probs_NK.masked_fill(~exact_NK, -torch.inf).logsumexp(-1)
        return SparseTargets(
            ids_NK,
            self.log_probs_NK.masked_fill(beyond_NK, -torch.inf),
            torch.logaddexp(self.tail_N, joining_N),
            self.sampled_NK,
            self.log_sums_N,
        )


Targets = DenseTargets | SparseTargets
