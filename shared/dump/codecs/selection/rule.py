"""The base class of rules for choosing ids, and the ids that a rule keeps.

Shapes: N positions, V vocabulary, E kept ids of all positions, one position after the other.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from shared.dump.codecs.selection import blocks
from shared.dump.codecs.selection.softmax import Softmax


@dataclass(frozen=True)
class Kept:
    """The ids that a rule keeps: within a position first the exact ids, sorted, then the sampled ids, sorted.

    Attributes:
        ids_E: int64.
        log_probs_E: float32; unused for sampled ids.
        counts_N: int64, number of ids of a position.
        exact_N: int64, number of exact ids of a position.
        tail_N: float32, log of the mass outside the exact ids.
        times_E: int64, how often each id was drawn; None unless ids are drawn with replacement.
    """

    ids_E: Tensor
    log_probs_E: Tensor
    counts_N: Tensor
    exact_N: Tensor
    tail_N: Tensor
    times_E: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence["Kept"]) -> "Kept":
        """Concatenate what one rule keeps of successive slices of positions."""
        ids_E, log_probs_E, counts_N, exact_N, tail_N = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("ids_E", "log_probs_E", "counts_N", "exact_N", "tail_N")
        )
        times = [part.times_E for part in parts if part.times_E is not None]
        return cls(ids_E, log_probs_E, counts_N, exact_N, tail_N, torch.cat(times) if times else None)


class Rule(BaseModel, ABC):
    """A rule for choosing ids; the manifest stores its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Whether sampled ids represent the tail. They make forward KL unbiased, but no other divergence.
    samples: ClassVar[bool] = False
    # Whether the probabilities of some ids are known.
    has_exact_ids: ClassVar[bool] = True
    # Whether the smallest kept probability varies between positions without a bound that the rule knows.
    has_floors: ClassVar[bool] = False

    @property
    def fixed_ids(self) -> int | None:
        """The number of ids of every position, if the vocabulary has as many; None if the number varies."""
        return None

    @property
    def sampled_weight(self) -> float | None:
        """The weight of each sampled id; None if no ids are sampled, or ids are drawn with replacement."""
        return None

    @property
    def most_times(self) -> int | None:
        """The number of draws with replacement per position; None for other rules."""
        return None

    @property
    def most_ids(self) -> int | None:
        """The most ids that a position can have; None if the rule has no bound besides the vocabulary."""
        return self.fixed_ids

    def at_threshold(self, threshold: float) -> "Rule | None":
        """Return the same rule with another threshold; None for a rule without one."""
        return None

    def as_begun(self, begun: "Rule") -> "Rule":
        """Return this rule with the threshold of a dump that was begun with `begun` and the same budget of bytes."""
        return self

    @property
    @abstractmethod
    def expected_ids(self) -> int:
        """An estimate of the number of ids per position."""

    @abstractmethod
    def select(self, softmax: Softmax, keys_N: Tensor) -> Kept:
        """Choose the ids to keep; the positions' `keys_N` determine what is drawn at random."""

    @abstractmethod
    def describe(self) -> str:
        """Describe the rule in a few words, for messages and reports."""


def owners_and_ranks(counts_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each of E = sum of counts_N entries, its position and its number within the position, from 0."""
    owners_E = torch.repeat_interleave(counts_N)
    return owners_E, blocks.ranks(owners_E, counts_N)
