"""A linear-chain conditional random field (Lafferty, McCallum & Pereira 2001), batched, as pure functions of tensors.

A path y of a chain of T positions has the score sum_t emissions[t, y_t] + first[y_0] + sum_t between[y_t, y_t+1] +
last[y_T-1], and the probability exp(score) / Z. Everything is exact, takes time O(T C^2) for a chain (O(T C^2 k) for
its k best paths), and never holds an edge tensor [B, L, C, C]. The results have the type of the scores.

It is our own because no maintained library has all of this. pytorch-crf (0.7.2, 2019) has neither marginals nor the k
best paths. torch-struct (0.5, 2021) has both and still runs, but it takes all edges as one tensor [B, L - 1, C, C], has
no chain of one position, and has had no release since; the tests compare with it where it is installed.

Shapes: B chains, L positions of the longest, C classes, K paths.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

# The score of what cannot be: finite, because 0 times it must be 0, and so low that exp of it is 0 beside any path.
IMPOSSIBLE = -1e6


class Transitions(NamedTuple):
    """Scores that do not depend on the position.

    Attributes:
        between_CC: of each class after each other one: [from, to].
        first_C, last_C: of the first and of the last class of a chain.
    """

    between_CC: Tensor
    first_C: Tensor
    last_C: Tensor

    def plus(self, other: "Transitions") -> "Transitions":
        """The sums of both scores."""
        return Transitions(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def times(self, factor: float) -> "Transitions":
        """All scores, times a factor."""
        return Transitions(*(scores * factor for scores in self))

    def like(self, values: Tensor) -> "Transitions":
        """The scores on the device of other values, and in their type."""
        return Transitions(*(scores.to(values) for scores in self))


class Marginals(NamedTuple):
    """Expectations under a chain's distribution over paths.

    Attributes:
        log_z_B: log Z.
        nodes_BLC: the probability of each class at each position; 0 at padding.
        edges_BCC: the expected number of each transition [from, to] in a chain, the sum of its edge marginals.
        lasts_BC: the probability of each class at a chain's last position.
    """

    log_z_B: Tensor
    nodes_BLC: Tensor
    edges_BCC: Tensor
    lasts_BC: Tensor


@dataclass(frozen=True)
class CRF:
    """Distributions over the paths of some chains, padded on the right.

    Attributes:
        emissions_BLC: the score of each class at each position; what is at padding does not matter.
        lengths_B: int64, the number of positions of each chain, at least 1.
        transitions: those of all chains.
    """

    emissions_BLC: Tensor
    lengths_B: Tensor
    transitions: Transitions

    @cached_property
    def is_position_BL(self) -> Tensor:
        """Whether each position belongs to a chain and is not padding."""
        at_L = torch.arange(self.emissions_BLC.shape[1], device=self.lengths_B.device)
        return at_L < self.lengths_B[:, None]

    def log_partition(self) -> Tensor:
        """log Z of each chain [B]: the log of the sum over all paths of exp(score)."""
        return (self._forward()[-1] + self.transitions.last_C).logsumexp(-1)

    def path_scores(self, paths_BKL: Tensor) -> Tensor:
        """The scores [B, K] of paths of classes, int64 (any class at padding)."""
        between_CC, first_C, last_C = self.transitions
        is_position_B1L = self.is_position_BL[:, None]
        emitted_BKL = self.emissions_BLC.transpose(1, 2)[:, None].expand(-1, paths_BKL.shape[1], -1, -1)
        emitted_BKL = emitted_BKL.gather(2, paths_BKL[:, :, None]).squeeze(2)
        moved_BKL = between_CC[paths_BKL[..., :-1], paths_BKL[..., 1:]]
        lasts_BK = paths_BKL.gather(2, (self.lengths_B - 1)[:, None, None].expand(-1, paths_BKL.shape[1], 1)).squeeze(2)
        return (
            emitted_BKL.where(is_position_B1L, 0).sum(-1)
            + moved_BKL.where(is_position_B1L[..., 1:], 0).sum(-1)
            + first_C[paths_BKL[..., 0]]
            + last_C[lasts_BK]
        )

    def within(self, is_allowed_BLC: Tensor) -> "CRF":
        """The chains with only these classes at each position; its log Z is that of the lattice of such paths."""
        return CRF(self.emissions_BLC.masked_fill(~is_allowed_BLC, IMPOSSIBLE), self.lengths_B, self.transitions)

    @torch.no_grad()
    def marginals(self) -> Marginals:
        """Node and edge marginals by the forward-backward algorithm, without gradients."""
        between_CC, _, last_C = self.transitions
        alphas_BLC = torch.stack(self._forward(), 1)
        log_z_B = (alphas_BLC[:, -1] + last_C).logsumexp(-1)
        log_z_B11 = log_z_B[:, None, None]
        beta_BC = last_C.expand_as(alphas_BLC[:, 0])
        betas = [beta_BC]
        edges_BCC = torch.zeros_like(between_CC).expand(len(self.lengths_B), -1, -1)
        for at in range(self.emissions_BLC.shape[1] - 1, 0, -1):
            is_edge_B1 = self.is_position_BL[:, at, None]
            # [from, to]: what follows, from the transition to position `at` on.
            after_BCC = between_CC + (self.emissions_BLC[:, at] + beta_BC)[:, None]
            edge_BCC = (alphas_BLC[:, at - 1, :, None] + after_BCC - log_z_B11).exp()
            edges_BCC = edges_BCC + edge_BCC.where(is_edge_B1[..., None], 0)
            beta_BC = after_BCC.logsumexp(-1).where(is_edge_B1, beta_BC)
            betas.append(beta_BC)
        nodes_BLC = (alphas_BLC + torch.stack(betas[::-1], 1) - log_z_B11).exp()
        nodes_BLC = nodes_BLC.where(self.is_position_BL[..., None], 0)
        lasts_BC = nodes_BLC[torch.arange(len(self.lengths_B)), self.lengths_B - 1]
        return Marginals(log_z_B, nodes_BLC, edges_BCC, lasts_BC)

    def expected_scores(self, other: Marginals) -> Tensor:
        """The expectation [B] of a path's score here, if paths are drawn from another distribution over them."""
        between_CC, first_C, last_C = self.transitions
        emitted_BLC = self.emissions_BLC.where(self.is_position_BL[..., None], 0)
        return (
            (other.nodes_BLC * emitted_BLC).sum((1, 2))
            + (other.edges_BCC * between_CC).sum((1, 2))
            + (other.nodes_BLC[:, 0] * first_C + other.lasts_BC * last_C).sum(-1)
        )

    @torch.no_grad()
    def best_paths(self, k: int) -> tuple[Tensor, Tensor]:
        """The k paths with the highest scores, by the Viterbi algorithm with k paths to each class (no gradients).

        Returns:
            (paths int64 [B, K, L], 0 at padding; scores [B, K], highest first). If a chain has fewer than k paths, the
            others have the score -inf.
        """
        between_CC, first_C, last_C = self.transitions
        chains, length, classes = self.emissions_BLC.shape
        scores_BCK = torch.full((chains, classes, k), -torch.inf).to(self.emissions_BLC)
        scores_BCK[..., 0] = first_C + self.emissions_BLC[:, 0]
        # Where nothing is appended, each path comes from itself.
        stay_BCK = torch.arange(classes * k, device=self.lengths_B.device).view(classes, k).expand(chains, -1, -1)
        origins = []
        for at in range(1, length):
            # [to, from x path]: the index of a path among all that end at the position before is class * k + rank.
            moved_BCX = (scores_BCK[:, None] + between_CC.T[:, :, None]).flatten(2)
            best_BCK, origin_BCK = moved_BCX.topk(k)
            is_position_B11 = self.is_position_BL[:, at, None, None]
            scores_BCK = (best_BCK + self.emissions_BLC[:, at, :, None]).where(is_position_B11, scores_BCK)
            origins.append(origin_BCK.where(is_position_B11, stay_BCK).flatten(1))
        scores_BK, path_BK = (scores_BCK + last_C[:, None]).flatten(1).topk(k)
        steps = [path_BK]
        for origin_BX in reversed(origins):
            steps.append(origin_BX.gather(1, steps[-1]))
        paths_BKL = torch.stack(steps[::-1], -1) // k
        return paths_BKL.where(self.is_position_BL[:, None], 0), scores_BK

    def _forward(self) -> list[Tensor]:
        """The log of the sum over the beginnings of paths that end in each class, [B, C] for each position.

        After a chain's end, its last one is repeated.
        """
        alphas = [self.transitions.first_C + self.emissions_BLC[:, 0]]
        for at in range(1, self.emissions_BLC.shape[1]):
            moved_BC = (alphas[-1][:, :, None] + self.transitions.between_CC).logsumexp(1)
            is_position_B1 = self.is_position_BL[:, at, None]
            alphas.append((moved_BC + self.emissions_BLC[:, at]).where(is_position_B1, alphas[-1]))
        return alphas
