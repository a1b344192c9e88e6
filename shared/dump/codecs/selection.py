"""Which ids of a distribution are kept, and what stands for the others.

Shapes: N positions, V vocabulary, K most that a position keeps, E kept ids of all positions, one position after the
other.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from shared.dump.codecs.base import refuse_broken
from shared.dump.codecs.uniforms import uniforms


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


@dataclass(frozen=True)
class Softmax:
    """Distributions of N positions: p = mass_NV / total_N1, and log p = shifted_NV - log total_N1."""

    shifted_NV: Tensor
    mass_NV: Tensor
    total_N1: Tensor
    best_N1: Tensor

    @classmethod
    def of(cls, logits_NV: Tensor) -> "Softmax":
        """Of float32 logits. Raises NotFiniteError for NaN or +infinity."""
        # Relative to the largest logit: next to a logit of 10,000 float32 would round log-probabilities to 0.001.
        largest_N1, best_N1 = logits_NV.max(-1, keepdim=True)
        shifted_NV = logits_NV - largest_N1
        mass_NV = shifted_NV.exp()
        total_N1 = mass_NV.sum(-1, keepdim=True)
        refuse_broken(~total_N1.isfinite().squeeze(-1))
        return cls(shifted_NV, mass_NV, total_N1, best_N1)

    def log_sum(self, temperature: float) -> Tensor:
        """log of the sum over V of p ** (1 / temperature), [N]."""
        return (self.shifted_NV / temperature).logsumexp(-1) - self.total_N1.log().squeeze(-1) / temperature

    def tail(self, rest_NV: Tensor) -> Tensor:
        """log of the mass in `rest_NV` (mass_NV with what is kept set to zero), [N]: summed, because 1 - the kept mass
        would lose a confident teacher's sliver to rounding."""
        return (rest_NV.sum(-1, keepdim=True) / self.total_N1).log().squeeze(-1)


class Rule(BaseModel, ABC):
    """A way to choose ids; its fields are in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Whether ids stand for the tail. A loss against them is unbiased for forward KL, and for nothing else.
    samples: ClassVar[bool] = False

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


class TopK(Rule):
    """The k most probable ids."""

    rule: Literal["top-k"] = "top-k"
    k: int = Field(ge=1)

    @property
    def expected_ids(self) -> int:
        return self.k

    def describe(self) -> str:
        return f"top {self.k}"

    def select(self, softmax: Softmax, keys_N: Tensor) -> Kept:
        top_NK, ids_NK = softmax.shifted_NV.topk(min(self.k, softmax.shifted_NV.shape[-1]), dim=-1)
        return kept_of_top(softmax, ids_NK, top_NK - softmax.total_N1.log(), torch.ones_like(ids_NK, dtype=torch.bool))


class TopP(Rule):
    """The most probable ids that together reach probability p (nucleus), at most k of them."""

    rule: Literal["top-p"] = "top-p"
    p: float = Field(gt=0, le=1)
    k: int = Field(ge=1)

    @property
    def expected_ids(self) -> int:
        return self.k

    def describe(self) -> str:
        return f"top mass {self.p:g}, at most {self.k} ids"

    def select(self, softmax: Softmax, keys_N: Tensor) -> Kept:
        top_NK, ids_NK = softmax.shifted_NV.topk(min(self.k, softmax.shifted_NV.shape[-1]), dim=-1)
        log_probs_NK = top_NK - softmax.total_N1.log()
        probs_NK = log_probs_NK.exp()
        return kept_of_top(softmax, ids_NK, log_probs_NK, probs_NK.cumsum(-1) - probs_NK < self.p)


class Threshold(Rule):
    """Every id more probable than the threshold (and the most probable one), and something for the others.

    `tail="sample"`: one of the others is kept with probability p / threshold and then weighs exactly the threshold.
    It is drawn systematically, one random number a position: the running sum of p / threshold over the others, in the
    order of their ids, keeps an id where it passes that number plus 0, 1, 2, ... So the weights of all kept ids are
    unbiased for the distribution, at the least variance for their expected number (Duffield, Lund and Thorup 2007,
    "Priority sampling for estimation of arbitrary subset sums", section on threshold sampling), and they sum to 1
    within the threshold. The running sum is float32, which moves an id's chance by about 1e-7 / threshold.
    `tail="mass"`: only the others' total is kept.
    """

    rule: Literal["threshold"] = "threshold"
    threshold: float = Field(gt=0, lt=1)
    tail: Literal["sample", "mass"] = "sample"

    @property
    def samples(self) -> bool:  # type: ignore[override]
        """Whether ids stand for the tail."""
        return self.tail == "sample"

    @property
    def expected_ids(self) -> int:
        return max(1, round(0.5 / self.threshold))

    def describe(self) -> str:
        return f"p > {self.threshold:g}, the rest {'sampled' if self.samples else 'summed'}"

    def select(self, softmax: Softmax, keys_N: Tensor) -> Kept:
        cut_N1 = softmax.total_N1 * self.threshold
        exact_NV = softmax.mass_NV > cut_N1
        exact_NV.scatter_(-1, softmax.best_N1, True)
        exact_N = exact_NV.sum(-1)
        owners_E, ids_E = exact_NV.nonzero(as_tuple=True)
        log_probs_E = softmax.shifted_NV[owners_E, ids_E] - softmax.total_N1.log().squeeze(-1)[owners_E]
        rest_NV = softmax.mass_NV.masked_fill(exact_NV, 0.0)
        tail_N = softmax.tail(rest_NV)
        if not self.samples:
            return Kept(ids_E, log_probs_E, exact_N, exact_N, tail_N)
        running_NV = rest_NV.cumsum(-1)
        most = int((running_NV[:, -1:] / cut_N1).max().ceil()) + 1 if len(running_NV) else 1
        marks_NM = (uniforms(keys_N, 1) + torch.arange(most, device=keys_N.device)) * cut_N1
        marks_NM = marks_NM.to(running_NV.dtype)
        drawn_NM = torch.searchsorted(running_NV, marks_NM, right=True)
        is_drawn_NM = marks_NM < running_NV[:, -1:]
        # Two marks are a whole p / threshold <= 1 apart, so only rounding could make them meet.
        is_drawn_NM[:, 1:] &= drawn_NM[:, 1:] != drawn_NM[:, :-1]
        return _joined(ids_E, log_probs_E, exact_N, drawn_NM, is_drawn_NM, tail_N)


class Draws(Rule):
    """n draws with replacement: ids and how often each came. Anshumann et al. 2025, "Sparse Logit Sampling"
    (arXiv 2503.16870)."""

    samples: ClassVar[bool] = True

    rule: Literal["draws"] = "draws"
    draws: int = Field(ge=1, le=255)

    @property
    def expected_ids(self) -> int:
        return self.draws

    def describe(self) -> str:
        return f"{self.draws} random draws"

    def select(self, softmax: Softmax, keys_N: Tensor) -> Kept:
        running_NV = softmax.mass_NV.cumsum(-1)
        marks_NM = uniforms(keys_N, self.draws) * running_NV[:, -1:]
        drawn_NM = torch.searchsorted(running_NV, marks_NM.to(running_NV.dtype), right=True)
        # Rounding may carry a mark to the very end, where there is no id left.
        last_N1 = torch.searchsorted(running_NV, running_NV[:, -1:].contiguous())
        drawn_NM = sorted_rows(torch.minimum(drawn_NM, last_N1))
        is_first_NM = torch.ones_like(drawn_NM, dtype=torch.bool)
        is_first_NM[:, 1:] = drawn_NM[:, 1:] != drawn_NM[:, :-1]
        counts_N = is_first_NM.sum(-1)
        starts_E = is_first_NM.flatten().nonzero().squeeze(-1)
        times_E = torch.diff(starts_E, append=starts_E.new_tensor([drawn_NM.numel()]))
        ids_E = drawn_NM[is_first_NM]
        # No id is exact, so all mass is outside.
        no_logs_E, no_logs_N = (torch.zeros_like(like, dtype=torch.float32) for like in (ids_E, counts_N))
        return Kept(ids_E, no_logs_E, counts_N, torch.zeros_like(counts_N), no_logs_N, times_E)


Selection = Annotated[TopK | TopP | Threshold | Draws, Field(discriminator="rule")]


def kept_of_top(softmax: Softmax, ids_NK: Tensor, log_probs_NK: Tensor, is_kept_NK: Tensor) -> Kept:
    """Some of the most probable ids, given in falling order."""
    tail_N = softmax.tail(softmax.mass_NV.scatter(-1, ids_NK, softmax.mass_NV.gather(-1, ids_NK) * ~is_kept_NK))
    ids_NK, order_NK = rising(ids_NK)
    counts_N = is_kept_NK.sum(-1)
    is_kept_NK = is_kept_NK.gather(-1, order_NK)
    return Kept(ids_NK[is_kept_NK], log_probs_NK.gather(-1, order_NK)[is_kept_NK], counts_N, counts_N, tail_N)


def rising(ids_NK: Tensor) -> tuple[Tensor, Tensor]:
    """(ids in rising order within each position, the order that does it)."""
    ranks_K = torch.arange(ids_NK.shape[-1], device=ids_NK.device)
    keys_NK = sorted_rows((ids_NK << 32) | ranks_K)
    return keys_NK >> 32, keys_NK & (2**32 - 1)


def sorted_rows(values_NK: Tensor) -> Tensor:
    """Each row in rising order. On a CPU by numpy, whose vectorised sort is some 15 times faster than torch's."""
    if values_NK.device.type == "cpu":
        return torch.from_numpy(np.sort(values_NK.numpy(), axis=-1))
    return values_NK.sort(-1).values


def owners_and_ranks(counts_N: Tensor) -> tuple[Tensor, Tensor]:
    """For each of E = sum of counts_N entries: whose it is, and the how manieth there."""
    owners_E = torch.repeat_interleave(counts_N)
    starts_N = counts_N.cumsum(0) - counts_N
    return owners_E, torch.arange(len(owners_E), device=counts_N.device) - starts_N[owners_E]


def _joined(
    ids_E: Tensor, log_probs_E: Tensor, exact_N: Tensor, drawn_NM: Tensor, is_drawn_NM: Tensor, tail_N: Tensor
) -> Kept:
    """Exact ids, and after those of each position the drawn ones."""
    counts_N = exact_N + is_drawn_NM.sum(-1)
    owners_E, ranks_E = owners_and_ranks(counts_N)
    is_exact_E = ranks_E < exact_N[owners_E]
    joined_E = torch.empty_like(owners_E)
    joined_E[is_exact_E] = ids_E
    joined_E[~is_exact_E] = drawn_NM[is_drawn_NM]
    joined_log_probs_E = torch.zeros_like(owners_E, dtype=log_probs_E.dtype)
    joined_log_probs_E[is_exact_E] = log_probs_E
    return Kept(joined_E, joined_log_probs_E, counts_N, exact_N, tail_N)
