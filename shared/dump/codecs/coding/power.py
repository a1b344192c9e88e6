"""Probabilities as small integers: the code of p is round(levels * p ** 0.4).

The KL divergence caused by rounding is about half the sum of (error of p)**2 / p. So steps that are equidistant in
p ** 0.5 spread it evenly, and cause the least divergence for the number of levels. A slightly smaller exponent costs
hardly more (measured: within 2% at k = 50) and gives small probabilities better relative precision, which matters for
temperatures above 1 and reverse divergences.

Shapes: N positions, E kept ids of all positions.
"""

import math
from typing import Literal

import polars as pl
import torch
from torch import Tensor

from shared.dump.codecs.selection.rule import Kept

EXPONENT = 0.4
# The level to which code 0 decodes: about the middle of the probabilities that are rounded to 0.
BELOW_HALF = 0.25


def to_codes(log_probs: Tensor, levels: int) -> Tensor:
    """Encode log-probabilities as codes 0..levels (int32), with an error of at most half a step of p ** 0.4."""
    return (log_probs * EXPONENT).exp_().mul_(levels).round_().int()


def codes_of(kept: Kept, owners_E: Tensor, ranks_E: Tensor, levels: int) -> Tensor:
    """Return the codes of kept ids. The code of a position's most probable id is at least one above the next largest,
    so that the teacher's first choice survives rounding."""
    codes_E = to_codes(kept.log_probs_E, levels)
    is_exact_E = ranks_E < kept.exact_N.index_select(0, owners_E)
    log_probs_E = kept.log_probs_E.masked_fill(~is_exact_E, -torch.inf)
    best_N = reduced(log_probs_E, "max", kept.counts_N)
    is_best_E = log_probs_E == best_N.index_select(0, owners_E)
    others_E = codes_E.float().masked_fill(is_best_E | ~is_exact_E, -torch.inf)
    second_E = reduced(others_E, "max", kept.counts_N).index_select(0, owners_E)
    return codes_E + (is_best_E & (codes_E == second_E)).int()


def reduced(values_E: Tensor, how: Literal["min", "max"], counts_N: Tensor) -> Tensor:
    """Return the smallest or largest value of each position, [N]."""
    # torch refuses to reduce zero segments.
    return torch.segment_reduce(values_E, how, lengths=counts_N) if len(counts_N) else values_E


def table(levels: int, device: torch.device) -> Tensor:
    """Return the log-probability of each code 0..levels, float32; decoding looks codes up in it."""
    codes = torch.arange(levels + 1, dtype=torch.float64, device=device)
    codes[0] = BELOW_HALF
    return ((codes / levels).log() / EXPONENT).float()


def log_probs_expr(codes: pl.Expr, levels: int) -> pl.Expr:
    """Decode codes in polars, to float64 log-probabilities."""
    code = pl.when(codes == 0).then(BELOW_HALF).otherwise(codes.cast(pl.Float64))
    return (code.log() - math.log(levels)) / EXPONENT
