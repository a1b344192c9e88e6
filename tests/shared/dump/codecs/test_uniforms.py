"""Random numbers of a position: the published generator's, uniform, and unrelated between positions."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from shared.dump.codecs import position_keys
from shared.dump.codecs.selection.uniforms import uniforms
from tests.shared.round_trips import quick

WORD = 2**64


def split_mix_64(state: int) -> int:
    """The output of Steele, Lea and Flood's generator after `state`, in plain whole numbers."""
    value = (state + 0x9E3779B97F4A7C15) % WORD
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % WORD
    return value ^ (value >> 31)


@quick
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), st.integers(0, 4))
def test_uniforms_are_the_numbers_of_split_mix_64(keys: list[int], count: int) -> None:
    found = uniforms(torch.tensor(keys, dtype=torch.int64), count)
    steps = [(step + 1) * 0x9E3779B97F4A7C15 for step in range(count)]
    wanted = [[(split_mix_64((key + step) % WORD) >> 11) / 2**53 for step in steps] for key in keys]
    assert found.dtype == torch.float64
    assert found.shape == (len(keys), count)
    assert found.tolist() == wanted


@quick
@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**20))
def test_a_positions_key_mixes_seed_row_and_position(seed: int, row: int, position: int) -> None:
    found = position_keys(seed, torch.tensor([row]), torch.tensor([position]))
    wanted = split_mix_64((split_mix_64((split_mix_64(seed) + row) % WORD) + position) % WORD)
    assert found.item() % WORD == wanted


def test_no_two_positions_share_a_key() -> None:
    rows, positions = (grid.flatten() for grid in torch.meshgrid(torch.arange(100), torch.arange(200), indexing="ij"))
    keys = torch.cat([position_keys(seed, rows, positions) for seed in range(3)])
    assert len(keys.unique()) == 3 * 100 * 200


def test_uniforms_are_uniform_and_unrelated_over_rows_positions_and_seeds() -> None:
    count, zeros = 5000, torch.zeros(5000, dtype=torch.int64)
    numbers = torch.arange(count)
    by_rows = uniforms(position_keys(0, numbers, zeros), 2)
    by_positions = uniforms(position_keys(0, zeros, numbers), 1)[:, 0]
    by_seeds = torch.cat([uniforms(position_keys(seed, zeros[:1], zeros[:1]), 1)[0] for seed in range(count)])
    within = uniforms(position_keys(3, zeros[:1], zeros[:1]), count)[0]
    for sample in (by_rows[:, 0], by_rows[:, 1], by_positions, by_seeds, within):
        assert stats.kstest(sample.numpy(), "uniform").pvalue > 0.01
        assert abs(np.corrcoef(sample[1:], sample[:-1])[0, 1]) < 3 / math.sqrt(count)
    for one, other in ((by_rows[:, 0], by_rows[:, 1]), (by_rows[:, 0], by_positions), (by_positions, by_seeds)):
        assert abs(np.corrcoef(one[1:], other[1:])[0, 1]) < 3 / math.sqrt(count)
