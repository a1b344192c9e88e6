"""The order of training rows: each row once an epoch, the same for the same seed, and any batch found by a seek."""

from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.dump.rowgroup import RowGroup
from student_train import order
from student_train.loader import TrainingBatches
from student_train.order import References, batches_per_epoch, cut_into_batches, windows

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=50)
batch_sizes = st.integers(1, 33)
seeds = st.integers(0, 2**31)


def epoch_of(group_rows: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[References]:
    """An epoch's batches, of rows whose lengths are a function of their place."""
    found = []
    for number, rows in enumerate(windows(group_rows, batch_size, seed, epoch)):
        lengths = (rows[:, 0] * 7 + rows[:, 1] * 13) % 31
        found += cut_into_batches(rows, lengths, batch_size, [seed, epoch, 2, number])
    return found


def every_row(group_rows: Sequence[int]) -> list[tuple[int, int]]:
    return [(group, row) for group, count in enumerate(group_rows) for row in range(count)]


@settings(max_examples=80, deadline=None)
@given(group_rows=sizes, batch_size=batch_sizes, seed=seeds, epoch=st.integers(0, 5))
def test_an_epoch_has_every_row_once_in_as_few_batches_as_can_be(
    group_rows: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    batches = epoch_of(group_rows, batch_size, seed, epoch)
    assert sorted(tuple(row) for batch in batches for row in batch.tolist()) == every_row(group_rows)
    assert len(batches) == batches_per_epoch(group_rows, batch_size) == -(-sum(group_rows) // batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])


@settings(max_examples=30, deadline=None)
@given(group_rows=sizes, batch_size=batch_sizes, seed=seeds)
def test_the_order_is_a_function_of_seed_and_epoch(group_rows: list[int], batch_size: int, seed: int) -> None:
    def flat(seed: int, epoch: int) -> list[Any]:
        return np.concatenate(epoch_of(group_rows, batch_size, seed, epoch)).tolist()

    assert flat(seed, 1) == flat(seed, 1)
    if sum(group_rows) > max(20, 4 * batch_size):
        assert flat(seed, 0) != flat(seed, 1)
        assert flat(seed, 0) != flat(seed + 1, 0)


def test_rows_of_a_window_are_mixed_across_its_groups() -> None:
    first = next(iter(windows([50] * order.WINDOW_GROUPS, 10, 0, 0)))
    assert len(set(first[:50, 0].tolist())) > order.WINDOW_GROUPS // 2


def test_a_window_meets_other_groups_each_epoch() -> None:
    first, second = (set(next(iter(windows([1] * 100, 1, 0, epoch)))[:, 0].tolist()) for epoch in (0, 1))
    assert first != second


def test_a_window_holds_no_more_groups_than_it_says() -> None:
    for rows in windows([10] * 100, 7, 0, 0):
        # Besides those of the rows, at most 6, that waited for a full batch.
        assert len(set(rows[:, 0].tolist())) <= order.WINDOW_GROUPS + 6


def test_small_data_meet_in_other_batches_each_epoch() -> None:
    """Sorting all of them by length would undo the shuffle."""
    first, second = ({frozenset(map(tuple, batch.tolist())) for batch in epoch_of([31], 4, 0, at)} for at in (0, 1))
    assert not first & second


def test_batches_are_of_similar_length_and_in_random_order() -> None:
    """Padding of a few per cent, where rows of 5 to 128 tokens in random batches would have over 40."""
    draw = np.random.default_rng(0)
    rows = np.stack([np.zeros(8192, np.int64), np.arange(8192)], axis=1)
    lengths = draw.integers(5, 129, 8192)
    batches = [lengths[batch[:, 1]] for batch in cut_into_batches(rows, lengths, 32, [0])]
    real, padded = sum(map(np.sum, batches)), sum(len(batch) * batch.max() for batch in batches)
    assert 1 - real / padded < 0.05
    longest = [int(batch.max()) for batch in batches]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.2


# ---------------------------------------------------------------- the stream of batches


class Numbers:
    """A source whose rows are sequences of one number that no other row has."""

    vectors: dict[str, Any] = {}  # noqa: RUF012

    class tokenizer:
        pad_token_id = 0

    def __init__(self, group_rows: Sequence[int]) -> None:
        self.group_rows = tuple(group_rows)
        self.loads: list[int] = []

    def load(self, group: int, columns: Sequence[str]) -> RowGroup:
        self.loads.append(group)
        count = self.group_rows[group]
        first = 1 + sum(self.group_rows[:group])
        numbers = np.arange(first, first + count)
        lengths = numbers % 9 + 1
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ones = np.arange(count + 1)
        return RowGroup(
            numbers,
            offsets,
            np.repeat(numbers, lengths).astype(np.int32),
            None,
            ones,
            np.zeros(count, np.int32),
            numbers.astype(np.int32),
        )


def stream(group_rows: Sequence[int], batch_size: int, **options: Any) -> TrainingBatches:
    return TrainingBatches(Numbers(group_rows), [], batch_size, seed=3, **options)  # type: ignore[arg-type]


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in ("input_ids", "attention_mask", "positions", "labels"):
        assert one[name].tolist() == other[name].tolist(), name


@settings(max_examples=25, deadline=None)
@given(group_rows=sizes, batch_size=st.integers(1, 20), first=st.integers(0, 60))
def test_starting_at_a_batch_gives_what_an_uninterrupted_stream_gives(
    group_rows: list[int], batch_size: int, first: int
) -> None:
    whole = list(islice(stream(group_rows, batch_size), first, first + 8))
    resumed = list(islice(stream(group_rows, batch_size, first_batch=first), 8))
    for one, other in zip(whole, resumed, strict=True):
        assert_same(one, other)


def test_a_seek_reads_no_window_that_it_passes_over() -> None:
    group_rows = [8] * (4 * order.WINDOW_GROUPS)
    source = Numbers(group_rows)
    last = batches_per_epoch(group_rows, 4) - 1
    next(iter(TrainingBatches(source, [], 4, 0, first_batch=last)))  # type: ignore[arg-type]
    assert len(source.loads) == order.WINDOW_GROUPS


def test_an_epoch_loads_each_group_once_and_the_next_follows_by_itself() -> None:
    source = Numbers([5] * 40)
    batches = TrainingBatches(source, [], 8, 0)  # type: ignore[arg-type]
    epoch = batches_per_epoch(source.group_rows, 8)
    rows = [batch["labels"].tolist() for batch in islice(batches, 2 * epoch)]
    first, second = list(chain(*rows[:epoch])), list(chain(*rows[epoch:]))
    assert sorted(first) == sorted(second) == list(range(1, 201))
    assert first != second
    assert len(source.loads) == 2 * 40


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_see_the_global_batches(ranks: int) -> None:
    group_rows, batch_size = [9, 4, 30, 1, 17], 6
    whole = list(islice(stream(group_rows, batch_size), 25))
    parts = [list(islice(stream(group_rows, batch_size, rank=rank, ranks=ranks), 25)) for rank in range(ranks)]
    for number, batch in enumerate(whole):
        seen, rows = [part[number]["labels"].tolist() for part in parts], batch["labels"].tolist()
        # (A short batch may have too few rows to go round; the test below is about those.)
        assert sorted(chain(*seen)) == sorted(rows) or len(rows) < ranks
        assert max(map(len, seen)) - min(map(len, seen)) <= 1


def test_a_rank_for_which_the_last_batch_has_no_row_repeats_one() -> None:
    """One row is left for two ranks; both must take the step, or the one waits for the other for ever."""
    last = [list(islice(stream([5], 4, rank=rank, ranks=2), 2))[1] for rank in range(2)]
    assert_same(*last)
    assert len(last[0]["labels"]) == 1
