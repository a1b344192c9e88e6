"""Rows looked at block by block: maxima, sums and what is gathered are those of a plain loop, whatever the row's end.

Shapes: N positions, V vocabulary, B blocks, S ids of a block.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.dump.codecs.selection import blocks
from tests.shared.round_trips import quick, random_logits, seeds, thorough

widths = st.one_of(st.integers(1, 400), st.sampled_from([1, 63, 64, 65, 127, 128, 129]))


@quick
@given(seeds, st.integers(0, 3), widths)
def test_maxima_and_sums_are_those_of_each_block(seed: int, positions: int, vocabulary: int) -> None:
    values = random_logits(seed, positions, vocabulary)
    starts = range(0, vocabulary, blocks.SIZE)
    wanted = [values[:, start : start + blocks.SIZE].double() for start in starts]
    maxima, sums = blocks.maxima(values), blocks.sums(values)
    assert maxima.shape == sums.shape == (positions, len(starts))
    assert maxima.tolist() == torch.stack([part.amax(-1) for part in wanted], dim=-1).tolist()
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums, torch.stack([part.sum(-1) for part in wanted], dim=-1), rtol=0, atol=1e-4)


@quick
@given(seeds, st.integers(1, 3), widths, st.data())
def test_gathered_blocks_hold_their_values_and_a_filling(
    seed: int, positions: int, vocabulary: int, data: st.DataObject
) -> None:
    values = random_logits(seed, positions, vocabulary)
    size = -(-vocabulary // blocks.SIZE)
    places = data.draw(st.lists(st.tuples(st.integers(0, positions - 1), st.integers(0, size - 1)), max_size=6))
    rows, which = (torch.tensor([place[side] for place in places], dtype=torch.int64) for side in (0, 1))
    found = blocks.gather(values, rows, which, -7.0)
    padded = np.pad(values.numpy(), [(0, 0), (0, size * blocks.SIZE - vocabulary)], constant_values=-7.0)
    wanted = [padded[row, block * blocks.SIZE : (block + 1) * blocks.SIZE].tolist() for row, block in places]
    assert found.tolist() == wanted
    assert found.shape == (len(places), blocks.SIZE)


def test_a_block_with_nan_has_nan_as_its_maximum() -> None:
    for at in (0, 70, 128, 199):
        values = torch.zeros(2, 200)
        values[1, at] = torch.nan
        assert blocks.maxima(values).isnan().nonzero().tolist() == [[1, at // blocks.SIZE]]


@thorough
@given(seeds, st.integers(0, 3), st.integers(1, 1500), st.integers(1, 1500), st.sampled_from([1, 4, 300]))
def test_top_is_a_stable_sort(seed: int, positions: int, vocabulary: int, k: int, different: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-different, different + 1, (positions, vocabulary), generator=generator) / 8
    wanted = (-values).sort(dim=-1, stable=True).indices[:, : min(k, vocabulary)]
    assert blocks.top(values, blocks.maxima(values), min(k, vocabulary)).tolist() == wanted.tolist()


@pytest.mark.parametrize("k", [1, 5, 300])
def test_top_takes_minus_zero_for_zero(k: int) -> None:
    values = torch.full((1, 1500), -1.0)
    values[0, ::200] = torch.tensor([-0.0, 0.0, -0.0, 0.0, 0.0, -0.0, 0.0, -0.0])
    found = blocks.top(values, blocks.maxima(values), k)[0].tolist()
    assert found[:5] == [0, 200, 400, 600, 800][: len(found[:5])]


@pytest.mark.parametrize("fill", [0.0, -torch.inf])
def test_top_of_equal_values_are_the_first_ids(fill: float) -> None:
    """-infinity, like the rest of a position that has all its mass on one id."""
    values = torch.full((2, 1500), fill)
    values[1, 1400] = 3.0
    found = blocks.top(values, blocks.maxima(values), 4)
    assert found.tolist() == [[0, 1, 2, 3], [1400, 0, 1, 2]]
