"""The order of training rows: each row once an epoch, the same for the same seed, and any batch found by a seek."""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.dump.layouts import LAYOUTS
from shared.dump.reader import GroupSizes
from shared.dump.rowgroup import RowGroup
from shared.errors import DumpError
from student_train.data import order
from student_train.data.batch import Batch
from student_train.data.batches import TrainingBatches
from student_train.data.gather import Rows
from student_train.data.order import Order

BYTES_PER_TOKEN = 100


class Numbers:
    """A source whose rows are sequences of one number, from 1 on, that no other row has."""

    per_column: dict[str, Any] = {}  # noqa: RUF012
    layout = LAYOUTS["listed"]
    mixtures = None

    class tokenizer:
        pad_token_id = 0

    def __init__(
        self, group_rows: Sequence[int], length_of: Callable[[Any], Any] = lambda number: number % 9 + 1
    ) -> None:
        self.group_rows, self.length_of = tuple(group_rows), length_of
        self.loads: list[int] = []

    def sizes(self, columns: Sequence[str]) -> GroupSizes:
        tokens = np.asarray([int(self.lengths(group).sum()) for group in range(len(self.group_rows))])
        return GroupSizes(np.asarray(self.group_rows), tokens, BYTES_PER_TOKEN * tokens)

    def numbers(self, group: int) -> Any:
        first = 1 + sum(self.group_rows[:group])
        return np.arange(first, first + self.group_rows[group])

    def lengths(self, group: int) -> Any:
        return self.length_of(self.numbers(group))

    def load(self, group: int, columns: Sequence[str]) -> RowGroup:
        self.loads.append(group)
        numbers, lengths = self.numbers(group), self.lengths(group)
        return RowGroup(
            numbers,
            np.concatenate([[0], np.cumsum(lengths)]),
            np.repeat(numbers, lengths).astype(np.int32),
            None,
            np.arange(len(numbers) + 1),
            np.zeros(len(numbers), np.int32),
            numbers.astype(np.int32),
        )


def stream(source: Numbers | Sequence[int], seed: int = 3, **options: Any) -> TrainingBatches:
    source = source if isinstance(source, Numbers) else Numbers(source)
    budget = {key: options.pop(key) for key in ("batch_size", "batch_tokens") if key in options}
    return TrainingBatches(source, [], Order(source.sizes([]), seed, **budget), **options)  # type: ignore[arg-type]


def batches_of(source: Numbers, order: Order, epoch: int) -> list[list[int]]:
    """An epoch's batches, as lists of the rows' numbers."""
    found = []
    for window in order.windows(epoch):
        rows = Rows([source.load(group, []) for group in window.groups.tolist()], set())
        found += [rows.take(batch).rows.tolist() for batch in order.cut(window, rows.lengths)]
    return found


def tokens_of(source: Numbers, batch: Sequence[int]) -> int:
    return int(source.length_of(np.asarray(batch)).sum())


@contextmanager
def windows_of(window_bytes: int) -> Iterator[None]:
    """(A fixture's patch would last for all of hypothesis' examples.)"""
    held, order.WINDOW_BYTES = order.WINDOW_BYTES, window_bytes
    try:
        yield
    finally:
        order.WINDOW_BYTES = held


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=50)
budgets = st.one_of(
    st.fixed_dictionaries({"batch_size": st.integers(1, 33)}),
    st.fixed_dictionaries({"batch_tokens": st.integers(1, 300)}),
)
window_sizes = st.sampled_from([1, 10_000, 50_000, 2**25])
seeds = st.integers(0, 2**31)


@settings(max_examples=100)
@given(group_rows=sizes, budget=budgets, window_bytes=window_sizes, seed=seeds, epoch=st.integers(0, 5))
def test_an_epoch_has_every_row_once(
    group_rows: list[int], budget: dict[str, int], window_bytes: int, seed: int, epoch: int
) -> None:
    source = Numbers(group_rows)
    with windows_of(window_bytes):
        order = Order(source.sizes([]), seed, **budget)
        batches = batches_of(source, order, epoch)
        assert sorted(chain(*batches)) == list(range(1, 1 + sum(group_rows)))
        assert order.batches(epoch + 1) - order.batches(epoch) == len(batches)
    assert all(batches)
    if "batch_size" in budget:
        assert max(map(len, batches)) <= budget["batch_size"]
        assert len(batches) == -(-sum(group_rows) // budget["batch_size"])
    else:
        # At most two rows more than fit, none of which has more than 9 tokens.
        assert all(tokens_of(source, batch) < budget["batch_tokens"] + 2 * 9 for batch in batches)


@settings(max_examples=40)
@given(
    group_rows=st.lists(st.integers(1, 40), min_size=5, max_size=50),
    budget=st.one_of(
        st.fixed_dictionaries({"batch_size": st.integers(8, 33)}),
        st.fixed_dictionaries({"batch_tokens": st.integers(60, 300)}),
    ),
    window_bytes=window_sizes,
    ranks=st.integers(1, 4),
    ready=st.integers(1, 9),
    seed=seeds,
)
def test_ranks_together_see_each_row_once_in_the_same_global_batches(
    group_rows: list[int], budget: dict[str, int], window_bytes: int, ranks: int, ready: int, seed: int
) -> None:
    source = Numbers(group_rows)
    with windows_of(window_bytes):
        order = Order(source.sizes([]), seed, **budget)
        epoch = int(order.batches(1))
        parts = [
            list(islice(stream(source, seed, rank=rank, ranks=ranks, ready=ready, **budget), epoch + 3))
            for rank in range(ranks)
        ]
        whole = list(islice(chain(batches_of(source, order, 0), batches_of(source, order, 1)), epoch + 3))
    seen = [[part[number].labels.tolist() for part in parts] for number in range(len(whole))]
    for batch, of_ranks in zip(whole, seen, strict=True):
        assert [of_ranks[place % ranks][place // ranks] for place in range(len(batch))] == batch or len(batch) < ranks
    if min(map(len, whole)) >= ranks:
        rows = list(chain.from_iterable(chain.from_iterable(seen[:epoch])))
        assert sorted(rows) == list(range(1, 1 + sum(group_rows)))


@settings(max_examples=30)
@given(group_rows=sizes, budget=budgets, seed=seeds)
def test_the_order_is_a_function_of_seed_and_epoch(group_rows: list[int], budget: dict[str, int], seed: int) -> None:
    source = Numbers(group_rows)

    def batches(seed: int, epoch: int) -> list[list[int]]:
        return batches_of(source, Order(source.sizes([]), seed, **budget), epoch)

    assert batches(seed, 1) == batches(seed, 1)
    if sum(group_rows) > 150:
        assert batches(seed, 0) != batches(seed, 1)
        assert batches(seed, 0) != batches(seed + 1, 0)


def test_batches_have_as_many_rows_as_asked_for() -> None:
    """All but those of the last window, which share what is left evenly."""
    source = Numbers([37] * 60)
    with windows_of(30_000):
        order = Order(source.sizes([]), 0, batch_size=16)
        found = [
            [len(batch) for batch in order.cut(window, Numbers([37 * 60]).lengths(0))] for window in order.windows(0)
        ]
    assert len(found) > 3
    assert {size for sizes in found[:-1] for size in sizes} == {16}
    assert max(found[-1]) - min(found[-1]) <= 1


@pytest.mark.parametrize("budget", [{"batch_size": 4}, {"batch_tokens": 20}])
def test_a_window_is_as_large_as_it_says(budget: dict[str, int]) -> None:
    source = Numbers([10] * 200)
    sizes = source.sizes([])
    with windows_of(60_000):
        windows = Order(sizes, 0, **budget).windows(0)
    held = [int(sizes.bytes[window.groups].sum()) for window in windows]
    assert len(held) > 10
    assert max(held[:-1]) <= 60_000
    assert min(held[:-1]) > 60_000 - 2 * sizes.bytes.max()


def test_a_window_has_bytes_enough_for_some_batches() -> None:
    """However small it is to be: batches of a window of one row group would be of that group alone."""
    source = Numbers([10] * 200)
    with windows_of(1):
        for window in Order(source.sizes([]), 0, batch_tokens=200).windows(0):
            assert order.WINDOW_BATCHES <= window.batches <= 2 * order.WINDOW_BATCHES + 1


def test_rows_of_a_window_are_mixed_across_its_groups() -> None:
    source = Numbers([50] * 8, lambda number: np.ones_like(number))
    for batch in batches_of(source, Order(source.sizes([]), 0, batch_size=20), 0):
        assert len({(number - 1) // 50 for number in batch}) >= 4


def test_a_window_and_a_batch_meet_other_groups_each_epoch() -> None:
    source = Numbers([20] * 200, lambda number: (number - 1) // 20 * 7 % 200 + 40)
    with windows_of(10**7):
        order = Order(source.sizes([]), 0, batch_size=20)
        windows = [{frozenset(window.groups.tolist()) for window in order.windows(epoch)} for epoch in (0, 1)]
        together = [
            {frozenset((number - 1) // 20 for number in batch) for batch in batches_of(source, order, epoch)}
            for epoch in (0, 1)
        ]
    assert not windows[0] & windows[1]
    assert len(together[0] & together[1]) < 0.2 * len(together[0])


def test_small_data_meet_in_other_batches_each_epoch() -> None:
    """Sorting all of them by length would undo the shuffle."""
    source = Numbers([31])
    order = Order(source.sizes([]), 0, batch_size=4)
    first, second = ({frozenset(batch) for batch in batches_of(source, order, epoch)} for epoch in (0, 1))
    assert not first & second


@pytest.mark.parametrize("budget", [{"batch_size": 32}, {"batch_tokens": 3200}])
def test_batches_have_little_padding_and_are_in_random_order(budget: dict[str, int]) -> None:
    """Rows of 8 to 512 tokens in shards of 4,096, sorted by length within each; in random batches padding doubles."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(np.log(85), 0.6, 12 * 4096), 8, 512).astype(np.int64)
    lengths = -np.sort(-lengths.reshape(12, 4096), axis=1).flatten()
    source = Numbers([64] * (len(lengths) // 64), lambda number: lengths[number - 1])
    # 260 bytes a token, as top 64 ids take.
    with windows_of(order.WINDOW_BYTES * BYTES_PER_TOKEN // 260):
        batches = [
            lengths[np.asarray(batch) - 1] for batch in batches_of(source, Order(source.sizes([]), 0, **budget), 0)
        ]
    padded = sum(len(batch) * int(batch.max()) for batch in batches)
    assert padded / lengths.sum() <= 1.05
    longest = [int(batch.max()) for batch in batches]
    assert abs(np.corrcoef(longest[1:], longest[:-1])[0, 1]) < 0.5


# ---------------------------------------------------------------- the stream of batches


def assert_same(one: Batch, other: Batch) -> None:
    assert (one.token_type_ids is None) == (other.token_type_ids is None)
    assert one.columns.keys() == other.columns.keys()
    for name in ("input_ids", "attention_mask", "positions", "labels"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name


@settings(max_examples=25)
@given(group_rows=sizes, budget=budgets, window_bytes=window_sizes, first=st.integers(0, 60))
def test_starting_at_a_batch_gives_what_an_uninterrupted_stream_gives(
    group_rows: list[int], budget: dict[str, int], window_bytes: int, first: int
) -> None:
    with windows_of(window_bytes):
        whole = list(islice(stream(group_rows, **budget), first, first + 8))
        resumed = list(islice(stream(group_rows, first_batch=first, **budget), 8))
    for one, other in zip(whole, resumed, strict=True):
        assert_same(one, other)


def test_a_seek_reads_the_groups_of_one_window_before_its_first_batch() -> None:
    source = Numbers([8] * 400)
    with windows_of(40_000):
        order = Order(source.sizes([]), 3, batch_size=4)
        batch = int(order.batches(2.6))
        epoch, number, _ = order.seek(batch)
        window = order.windows(epoch)[number]
        next(stream(source, batch_size=4, first_batch=batch)._batches())
    assert epoch == 2
    assert number > 0
    assert source.loads == window.groups.tolist()


def test_the_next_window_is_read_bit_by_bit_between_batches() -> None:
    source = Numbers([8] * 400)
    with windows_of(40_000):
        batches = stream(source, batch_size=4)._batches()
        next(batches)
        loads = []
        for _ in range(100):
            before = len(source.loads)
            next(batches)
            loads.append(len(source.loads) - before)
    assert sum(loads) > 40
    assert max(loads) <= 3


def test_an_epoch_loads_each_group_once_and_the_next_follows_by_itself() -> None:
    source = Numbers([5] * 160)
    with windows_of(20_000):
        batches = stream(source, batch_size=8)
        rows = [batch.labels.tolist() for batch in islice(batches._batches(), 200)]
        windows = batches.order.windows(2)
    first, second = list(chain(*rows[:100])), list(chain(*rows[100:]))
    assert sorted(first) == sorted(second) == list(range(1, 801))
    assert first != second
    # (Of the third epoch the first window is read ahead.)
    assert 2 * 160 - 10 <= len(source.loads) <= 2 * 160 + len(windows[0].groups)


def test_data_that_fit_into_a_window_are_read_once_for_all_epochs() -> None:
    source = Numbers([5] * 40)
    list(islice(stream(source, batch_size=8), 100))
    assert sorted(source.loads) == list(range(40))


def test_no_more_than_two_windows_are_in_memory() -> None:
    source = Numbers([8] * 400)
    live: list[Any] = []
    load = source.load

    def counted(group: int, columns: Sequence[str]) -> RowGroup:
        loaded = load(group, columns)
        live.append(weakref.ref(loaded))
        most.append(sum(reference() is not None for reference in live))
        return loaded

    most: list[int] = []
    source.load = counted  # type: ignore[method-assign]
    with windows_of(40_000):
        for _ in islice(stream(source, batch_size=4)._batches(), 300):
            pass
        groups = max(len(window.groups) for window in Order(source.sizes([]), 3, batch_size=4).windows(0)[:-1])
    assert max(most) <= 2 * groups + 2


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_for_which_a_batch_has_no_row_repeats_one(ranks: int) -> None:
    """One row is there for several ranks; all must take the step, or one waits for the others for ever."""
    last = [next(iter(stream([1], batch_size=4, rank=rank, ranks=ranks))) for rank in range(ranks)]
    for batch in last[1:]:
        assert_same(last[0], batch)
    assert len(last[0].labels) == 1


def test_what_goes_wrong_in_the_thread_reaches_the_trainer() -> None:
    source = Numbers([8] * 400)
    load = source.load

    def broken(group: int, columns: Sequence[str]) -> RowGroup:
        if len(source.loads) > 100:
            raise DumpError("00007.parquet: damaged")
        return load(group, columns)

    source.load = broken  # type: ignore[method-assign]
    with windows_of(40_000), pytest.raises(DumpError, match=r"00007\.parquet"):
        for _ in islice(stream(source, batch_size=4), 700):
            pass


def test_the_thread_ends_with_the_stream() -> None:
    before = threading.active_count()
    batches = iter(stream([8] * 40, batch_size=4))
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
