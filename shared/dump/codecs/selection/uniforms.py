"""Random numbers that depend on a position alone: not on the batch, the other rows of the shard, or the device.

The generator is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") in int64
arithmetic, which wraps around in the same way on every device.
"""

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def position_keys(seed: int, rows_N: Tensor, positions_N: Tensor) -> Tensor:
    """Return an int64 key for each position, computed from the dump's seed, the row's number and the position in it."""
    return _mix(_mix(_mix(torch.full_like(rows_N, seed)) + rows_N) + positions_N)


def uniforms(keys_N: Tensor, count: int) -> Tensor:
    """Return `count` numbers in [0, 1) for each key, float64 [N, count]."""
    steps = torch.arange(1, count + 1, device=keys_N.device) * _GAMMA
    return _shift(_mix(keys_N[:, None] + steps), 11).double() * 2.0**-53


def _mix(values: Tensor) -> Tensor:
    values = values + _GAMMA
    values = (values ^ _shift(values, 30)) * _FIRST
    values = (values ^ _shift(values, 27)) * _SECOND
    return values ^ _shift(values, 31)


def _shift(values: Tensor, bits: int) -> Tensor:
    """Shift right, and fill with zeros."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
