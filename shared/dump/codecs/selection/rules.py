"""The rules for choosing ids, and for what represents the others. A new rule is a class and an entry in RULES.

Shapes: N positions, V vocabulary, K most ids of a position, M draws of a position; concatenated over positions: E kept
ids, H blocks (see blocks.py), each of S ids.
"""

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from shared.dump.codecs.selection import blocks, sampling
from shared.dump.codecs.selection.rule import Kept, Rule, owners_and_ranks
from shared.dump.codecs.selection.softmax import Softmax
from shared.dump.codecs.selection.uniforms import uniforms
from shared.registry import Registry, tagged


class TopK(Rule):
    """The k most probable ids."""

    has_floors: ClassVar[bool] = True

    rule: Literal["top-k"] = "top-k"
    k: int = Field(ge=1)

    @property
    def fixed_ids(self) -> int:
        return self.k

    @property
    def expected_ids(self) -> int:
        return self.k

    def describe(self) -> str:
        return f"top {self.k}"

    def select(self, softmax: Softmax, keys_N: Tensor) -> Kept:
        ids_NK, log_probs_NK = most_probable(softmax, self.k)
        return kept_of_top(softmax, ids_NK, log_probs_NK, torch.ones_like(ids_NK, dtype=torch.bool))


class TopP(Rule):
    """The most probable ids that together reach probability p (nucleus), at most k of them."""

    has_floors: ClassVar[bool] = True

    rule: Literal["top-p"] = "top-p"
    p: float = Field(gt=0, le=1)
    k: int = Field(ge=1)

    @property
    def most_ids(self) -> int:
        return self.k

    @property
    def expected_ids(self) -> int:
        return self.k

    def describe(self) -> str:
        return f"top mass {self.p:g}, at most {self.k} ids"

    def select(self, softmax: Softmax, keys_N: Tensor) -> Kept:
        ids_NK, log_probs_NK = most_probable(softmax, self.k)
        probs_NK = log_probs_NK.exp()
        return kept_of_top(softmax, ids_NK, log_probs_NK, probs_NK.cumsum(-1) - probs_NK < self.p)


class Threshold(Rule):
    """All ids more probable than the threshold (and always the most probable id), and the tail, which is the others.

    `tail="sample"`: each of the others is kept with probability p / threshold and then has weight threshold. Sampling
    is systematic, with one random number per position: an id is kept if the running sum of p / threshold over the
    others, in the order of their ids, passes that number plus 0, 1, 2, ... So the weights of all kept ids are unbiased
    for the distribution, with the least variance for their expected number (Duffield, Lund and Thorup 2007, "Priority
    sampling for estimation of arbitrary subset sums", section on threshold sampling), and their sum differs from 1 by
    at most the threshold. Rounding changes the probability of keeping an id by about 1e-6.

    `tail="mass"`: only the total mass of the others is kept.
    """

    rule: Literal["threshold"] = "threshold"
    threshold: float = Field(gt=0, lt=1)
    tail: Literal["sample", "mass"] = "sample"

    @property
    def samples(self) -> bool:  # type: ignore[override]
        """Whether sampled ids represent the tail."""
        return self.tail == "sample"

    @property
    def sampled_weight(self) -> float | None:
        return self.threshold if self.samples else None

    def at_threshold(self, threshold: float) -> "Threshold":
        return self.model_copy(update={"threshold": threshold})

    def as_begun(self, begun: Rule) -> "Threshold":
        return self.at_threshold(begun.threshold) if isinstance(begun, Threshold) else self

    @property
    def most_ids(self) -> int:
        # Each exact id but the most probable one has more mass than the threshold, each sampled one stands for as much;
        # rounding may add one of each.
        return math.ceil(1 / self.threshold) + 3

    @property
    def expected_ids(self) -> int:
        return max(1, round(0.5 / self.threshold))

    def describe(self) -> str:
        return f"p > {self.threshold:g}, the rest {'sampled' if self.samples else 'summed'}"

    def select(self, softmax: Softmax, keys_N: Tensor) -> Kept:
        owners_E, ids_E = self._exact(softmax)
        log_probs_E = softmax.log_probs(owners_E, ids_E)
        exact_N = blocks.counted(owners_E, len(keys_N))
        rest = softmax.without(owners_E, ids_E, math.ceil(1 / self.threshold))
        if not self.samples:
            return Kept(ids_E, log_probs_E, exact_N, exact_N, rest.log_mass_N)
        step_N1 = rest.total_N1 * self.threshold
        drawn = sampling.systematic(rest.mass_NV, rest.sums_NB, step_N1, uniforms(keys_N, 1))
        return _joined(ids_E, log_probs_E, exact_N, *drawn, rest.log_mass_N)

    def _exact(self, softmax: Softmax) -> tuple[Tensor, Tensor]:
        """Return (owners_E, ids_E) of the ids above the threshold and of the most probable id of each position."""
        cut_N1 = math.log(self.threshold) + softmax.log_total_N1
        is_near_NB = softmax.maxima_NB - softmax.largest_N1 > cut_N1
        is_near_NB.scatter_(-1, softmax.best_N1 // blocks.SIZE, True)
        rows_H, blocks_H = is_near_NB.nonzero(as_tuple=True)
        shifted_HS = blocks.gather(softmax.logits_NV, rows_H, blocks_H, -torch.inf) - softmax.largest_N1[rows_H]
        ids_HS = blocks_H[:, None] * blocks.SIZE + torch.arange(blocks.SIZE, device=blocks_H.device)
        is_exact_HS = (shifted_HS > cut_N1[rows_H]) | (ids_HS == softmax.best_N1[rows_H])
        return blocks.marked(is_exact_HS, rows_H, blocks_H)


class Draws(Rule):
    """n draws with replacement: the ids drawn, and how often each was drawn.

    Source: Anshumann et al. 2025, "Sparse Logit Sampling" (arXiv 2503.16870).
    """

    samples: ClassVar[bool] = True
    has_exact_ids: ClassVar[bool] = False

    rule: Literal["draws"] = "draws"
    draws: int = Field(ge=1, le=255)

    @property
    def most_times(self) -> int:
        return self.draws

    @property
    def most_ids(self) -> int:
        return self.draws

    @property
    def expected_ids(self) -> int:
        return self.draws

    def describe(self) -> str:
        return f"{self.draws} random draws"

    def select(self, softmax: Softmax, keys_N: Tensor) -> Kept:
        drawn_NM = sampling.with_replacement(softmax.mass_NV, softmax.sums_NB, uniforms(keys_N, self.draws))
        drawn_NM = sorted_rows(drawn_NM)
        is_first_NM = torch.ones_like(drawn_NM, dtype=torch.bool)
        is_first_NM[:, 1:] = drawn_NM[:, 1:] != drawn_NM[:, :-1]
        counts_N = is_first_NM.sum(-1)
        starts_E = is_first_NM.flatten().nonzero().squeeze(-1)
        times_E = torch.diff(starts_E, append=starts_E.new_tensor([drawn_NM.numel()]))
        ids_E = drawn_NM[is_first_NM]
        # No id is exact, so all mass is outside.
        no_logs_E, no_logs_N = (torch.zeros_like(like, dtype=torch.float32) for like in (ids_E, counts_N))
        return Kept(ids_E, no_logs_E, counts_N, torch.zeros_like(counts_N), no_logs_N, times_E)


RULES: Registry[type[Rule]] = Registry(
    "rule for choosing ids", {"top-k": TopK, "top-p": TopP, "threshold": Threshold, "draws": Draws}
)

Selection = Annotated[Rule, tagged(RULES, "rule")]


def most_probable(softmax: Softmax, k: int) -> tuple[Tensor, Tensor]:
    """Return (ids, log-probabilities) of the k most probable ids (of all if there are fewer), most probable first."""
    ids_NK = blocks.top(softmax.logits_NV, softmax.maxima_NB, min(k, softmax.logits_NV.shape[-1]))
    owners_NK = torch.arange(len(ids_NK), device=ids_NK.device)[:, None].expand_as(ids_NK)
    return ids_NK, softmax.log_probs(owners_NK, ids_NK)


def kept_of_top(softmax: Softmax, ids_NK: Tensor, log_probs_NK: Tensor, is_kept_NK: Tensor) -> Kept:
    """Keep the ids that are marked, of the most probable ids, given most probable first."""
    ids_NK, order_NK = rising(ids_NK)
    is_kept_NK = is_kept_NK.gather(-1, order_NK)
    counts_N = is_kept_NK.sum(-1)
    ids_E, log_probs_E = ids_NK[is_kept_NK], log_probs_NK.gather(-1, order_NK)[is_kept_NK]
    rest = softmax.without(torch.repeat_interleave(counts_N), ids_E, ids_NK.shape[-1])
    return Kept(ids_E, log_probs_E, counts_N, counts_N, rest.log_mass_N)


def rising(ids_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Return (ids sorted within each position, the indices that sort them)."""
    ranks_K = torch.arange(ids_NK.shape[-1], device=ids_NK.device)
    keys_NK = sorted_rows((ids_NK << 32) | ranks_K)
    return keys_NK >> 32, keys_NK & (2**32 - 1)


def sorted_rows(values_NK: Tensor) -> Tensor:
    """Return each row sorted. On a CPU numpy sorts, because its vectorised sort is about 15 times faster than
    torch's."""
    if values_NK.device.type == "cpu":
        return torch.from_numpy(np.sort(values_NK.numpy(), axis=-1))
    return values_NK.sort(-1).values


def _joined(
    ids_E: Tensor, log_probs_E: Tensor, exact_N: Tensor, drawn_owners_E: Tensor, drawn_E: Tensor, tail_N: Tensor
) -> Kept:
    """Join exact and drawn ids; those drawn at a position come after its exact ones."""
    counts_N = exact_N + blocks.counted(drawn_owners_E, len(exact_N))
    owners_E, ranks_E = owners_and_ranks(counts_N)
    is_exact_E = ranks_E < exact_N[owners_E]
    joined_E = torch.empty_like(owners_E)
    joined_E[is_exact_E] = ids_E
    joined_E[~is_exact_E] = drawn_E
    joined_log_probs_E = torch.zeros_like(owners_E, dtype=log_probs_E.dtype)
    joined_log_probs_E[is_exact_E] = log_probs_E
    return Kept(joined_E, joined_log_probs_E, counts_N, exact_N, tail_N)
