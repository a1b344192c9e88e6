"""What a rule for choosing ids is, and what it keeps of some positions.

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
    """What a rule keeps. Within a position the exact ids come first, rising, then the sampled ones, rising.

    Attributes:
        ids_E: int64.
        log_probs_E: float32; of a sampled id it is not used.
        counts_N, exact_N: int64, how many ids a position keeps, and how many of them are exact.
        tail_N: float32, log of the mass outside the exact ids.
        times_E: int64, how often each was drawn; None unless ids are drawn with replacement.
    """

    ids_E: Tensor
    log_probs_E: Tensor
    counts_N: Tensor
    exact_N: Tensor
    tail_N: Tensor
    times_E: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence["Kept"]) -> "Kept":
        """What one rule keeps of some positions, and of the next ones, and so on."""
        ids_E, log_probs_E, counts_N, exact_N, tail_N = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("ids_E", "log_probs_E", "counts_N", "exact_N", "tail_N")
        )
        times = [part.times_E for part in parts if part.times_E is not None]
        return cls(ids_E, log_probs_E, counts_N, exact_N, tail_N, torch.cat(times) if times else None)


class Rule(BaseModel, ABC):
    """A way to choose ids; its fields are in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Whether ids stand for the tail. A loss against them is unbiased for forward KL, and for nothing else.
    samples: ClassVar[bool] = False
    # Whether the probability of some ids is known.
    has_exact_ids: ClassVar[bool] = True
    # Whether the least probable id that is kept may have any probability, from position to position.
    has_floors: ClassVar[bool] = False

    @property
    def fixed_ids(self) -> int | None:
        """How many ids every position keeps, of a vocabulary that has so many; None where positions differ."""
        return None

    @property
    def sampled_weight(self) -> float | None:
        """What each sampled id weighs; None where none is sampled, or they are drawn with replacement."""
        return None

    @property
    def most_times(self) -> int | None:
        """How many draws with replacement there are, of which each id has a number; None where there are none."""
        return None

    def at_threshold(self, threshold: float) -> "Rule | None":
        """The same rule with another threshold; None for one that has none."""
        return None

    def as_begun(self, begun: "Rule") -> "Rule":
        """This rule with the threshold of a dump that was begun with `begun` and the same budget of bytes."""
        return self

    @property
    @abstractmethod
    def expected_ids(self) -> int:
        """About how many ids a position keeps."""

    @abstractmethod
    def select(self, softmax: Softmax, keys_N: Tensor) -> Kept:
        """The ids to keep; `keys_N` name the positions for what is drawn at random."""

    @abstractmethod
    def describe(self) -> str:
        """A few words for people."""


def owners_and_ranks(counts_N: Tensor) -> tuple[Tensor, Tensor]:
    """For each of E = sum of counts_N entries: whose it is, and the how manieth there."""
    owners_E = torch.repeat_interleave(counts_N)
    return owners_E, blocks.ranks(owners_E, counts_N)
