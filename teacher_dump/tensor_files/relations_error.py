"""What a codec of attention inputs does to the attention relations that are computed from them, on a sample.

Shapes: M tokens of the sample, L of a row, D width of the inputs, W width of a part, H relation heads.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from shared.dump.signals import RELATIONS
from shared.dump.weights.projections import Projections

# The number of relation heads of the loss on relations, where it divides the widths.
MOST_HEADS = 12
# Of longer rows only the beginning is compared, because relations grow with the square.
MOST_TOKENS = 512


def relations_kl(projections: Projections, exact_MD: Tensor, decoded_MD: Tensor, lengths: Sequence[int]) -> float:
    """Return KL(exact || decoded) of the relations softmax(A A^T / sqrt(W / H)), in nats: the mean over queries, keys
    and values, relation heads and tokens.

    Args:
        exact_MD, decoded_MD: a layer's inputs, before and after the codec.
        lengths: tokens of each row; rows lie one after the other.
    """
    made = projections.in_type(torch.float32, exact_MD.device)
    common = math.gcd(*(made.facts.part(part).width for part in RELATIONS))
    heads = next(heads for heads in range(MOST_HEADS, 0, -1) if common % heads == 0)
    total, compared = 0.0, 0
    for start, end in pairwise(accumulate(lengths, initial=0)):
        row = slice(start, min(end, start + MOST_TOKENS))
        places_L = torch.arange(row.stop - row.start, device=exact_MD.device)
        for part in RELATIONS:
            log_p_HLL, log_q_HLL = (
                _log_relations(made.part(part, inputs_MD[row].float(), places_L), heads)
                for inputs_MD in (exact_MD, decoded_MD)
            )
            total += float((log_p_HLL.exp() * (log_p_HLL - log_q_HLL)).sum())
            compared += heads * len(places_L)
    return total / max(1, compared)


def _log_relations(part_LW: Tensor, heads: int) -> Tensor:
    heads_HLd = part_LW.unflatten(-1, (heads, -1)).transpose(0, 1)
    return (heads_HLd @ heads_HLd.transpose(1, 2) / math.sqrt(heads_HLd.shape[-1])).log_softmax(-1)
