"""Teachers for the codec benchmark: last hidden states and a head, from which every distribution can be computed.

Shapes: N positions, V vocabulary, D width, M candidates of a position, E kept ids of all positions.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from shared.dump.codecs import Selection, Threshold, position_keys
from shared.dump.codecs.selection.rule import Kept
from shared.dump.codecs.selection.softmax import Softmax

MOST_POSITIONS = 16_384
# 16 MB of float32 a slice: malloc keeps blocks of this size, and fetching fresh pages costs as much as the sums.
SLICE_NUMBERS = 2**22
# Enough for every threshold down to 1 / CANDIDATES.
CANDIDATES = 2560


@dataclass(frozen=True)
class Source:
    """Rows of positions: hidden_ND float16, head_VD float32, and the number of positions of each row."""

    name: str
    hidden_ND: Tensor
    head_VD: Tensor
    lengths: list[int]

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self.head_VD)

    def first(self, positions: int) -> "Source":
        """The first rows that have this number of positions together; the last of them may be cut."""
        lengths: list[int] = []
        for length in self.lengths:
            lengths.append(min(length, positions - sum(lengths)))
            if sum(lengths) == positions:
                break
        return replace(self, hidden_ND=self.hidden_ND[: sum(lengths)], lengths=lengths)

    def keys(self, seed: int) -> Tensor:
        """The keys of the positions for random draws, int64 [N]."""
        rows = torch.repeat_interleave(torch.tensor(self.lengths))
        return position_keys(seed, rows, torch.cat([torch.arange(length) for length in self.lengths]))

    def slices(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (positions, their float32 logits_NV) in slices."""
        step = max(1, SLICE_NUMBERS // self.vocabulary)
        for start in range(0, len(self.hidden_ND), step):
            part = slice(start, min(start + step, len(self.hidden_ND)))
            yield part, self.hidden_ND[part].float() @ self.head_VD.T

    @cached_property
    def candidates(self) -> "Candidates":
        """The candidates of all positions, by one pass over the vocabulary; rules about probable ids need no other."""
        parts = [Candidates.of(logits_NV, CANDIDATES) for _, logits_NV in self.slices()]
        return Candidates(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


@dataclass(frozen=True)
class Candidates:
    """The most probable ids of each position, and sums over all ids; all in float64, from float32 logits.

    Attributes:
        ids_NM: int64, ascending.
        shifted_NM: their logits, minus the largest.
        total_N1: sum over V of exp(logit - largest).
        log_sum_N: log of the sum over V of exp(logit).
        outside_N: log of the mass of all ids that are not candidates.
        entropy_N: in nats.
        squares_N: sum over V of p ** 2.
    """

    ids_NM: Tensor
    shifted_NM: Tensor
    total_N1: Tensor
    log_sum_N: Tensor
    outside_N: Tensor
    entropy_N: Tensor
    squares_N: Tensor

    @classmethod
    def of(cls, logits_NV: Tensor, most: int) -> "Candidates":
        """The candidates of some positions, from their logits."""
        largest_N1 = logits_NV.amax(-1, keepdim=True)
        shifted_NV = logits_NV - largest_N1
        ids_NM = shifted_NV.topk(min(most, logits_NV.shape[-1]), sorted=False).indices.sort().values
        mass_NV = shifted_NV.exp()
        total_N1 = mass_NV.sum(-1, keepdim=True, dtype=torch.float64)
        mean_N = (mass_NV * shifted_NV).sum(-1, dtype=torch.float64) / total_N1[:, 0]
        rest_N = mass_NV.scatter(-1, ids_NM, 0.0).sum(-1, dtype=torch.float64)
        return cls(
            ids_NM=ids_NM,
            shifted_NM=shifted_NV.gather(-1, ids_NM).double(),
            total_N1=total_N1,
            log_sum_N=largest_N1[:, 0] + total_N1[:, 0].log(),
            outside_N=(rest_N / total_N1[:, 0]).log(),
            entropy_N=total_N1[:, 0].log() - mean_N,
            squares_N=mass_NV.square().sum(-1, dtype=torch.float64) / total_N1[:, 0].square(),
        )

    def select(self, rule: Selection) -> Kept:
        """The ids that a rule selects, if it selects only candidates."""
        log_probs_NM = self.shifted_NM - self.total_N1.log()
        if isinstance(rule, Threshold):
            rarest = float(log_probs_NM.amin(-1).max().exp())
            if self.ids_NM.shape[1] == CANDIDATES and rarest > rule.threshold:
                raise ValueError(f"p > {rule.threshold:g} keeps more than the {CANDIDATES} candidates of a position")
        among = Softmax.of(self.shifted_NM.float())
        scale_N1 = among.total_N1 / among.log_total_N1.double().exp()
        total_N1, log_total_N1 = self.total_N1 * scale_N1, self.total_N1.log().float()
        softmax = replace(among, total_N1=total_N1, log_total_N1=log_total_N1)
        kept = rule.select(softmax, torch.zeros(len(self.ids_NM), dtype=torch.int64))
        owners_E = torch.repeat_interleave(kept.counts_N)
        tail_N = torch.logaddexp(kept.tail_N, self.outside_N)
        return replace(kept, ids_E=self.ids_NM[owners_E, kept.ids_E], tail_N=tail_N)


def load(path: Path) -> Source:
    """A source from its file: hidden [N, D], head [V, D], input_ids [N], seq_len [S]."""
    tensors = load_file(path)
    lengths = tensors["seq_len"].tolist()
    source = Source(path.stem, tensors["hidden"], tensors["head"].float(), lengths)
    return source.first(min(len(source.hidden_ND), MOST_POSITIONS))


def make(positions: int, sharpness: float = 5.3) -> Source:
    """An artificial source with a mean entropy of 2.5 nats.

    Its hidden states have low rank, drift within a row, and have a different confidence at each position; the head is
    random, with a bias that follows Zipf's law.
    """
    draw = torch.Generator().manual_seed(0)
    vocabulary, rank, inertia = 30_000, 48, 0.8

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    lengths: list[int] = []
    while sum(lengths) < positions:
        lengths.append(min(int(torch.randint(32, 257, (), generator=draw)), positions - sum(lengths)))
    rows = []
    for length in lengths:
        state_D, sureness, states = normal(rank), normal(1), []
        for _ in range(length):
            state_D = inertia * state_D + math.sqrt(1 - inertia**2) * normal(rank)
            sureness = inertia * sureness + math.sqrt(1 - inertia**2) * normal(1)
            states.append(torch.cat([state_D * (0.3 * sureness).exp(), torch.ones(1)]))
        rows.append(torch.stack(states))
    rarity_V = torch.arange(1, vocabulary + 1)[torch.randperm(vocabulary, generator=draw)].float()
    head_VD = torch.cat([normal(vocabulary, rank) * sharpness / math.sqrt(rank), -rarity_V.log()[:, None]], dim=1)
    return Source("made here", torch.cat(rows).half(), head_VD.half().float(), lengths)
