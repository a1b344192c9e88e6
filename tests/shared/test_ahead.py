"""Prefetching in a thread: nothing is lost, repeated or reordered, errors reach the reader, and no thread is left."""

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.ahead import ahead

PATIENCE_SECONDS = 20.0


def within_patience(work: Callable[[], Any]) -> Any:
    """Return or raise what `work` does; if it hangs, fail the test instead of blocking the suite."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend([work(), None])
        except BaseException as error:
            outcome.extend([None, error])

    thread = threading.Thread(target=run, name="within patience", daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert outcome, f"hangs: nothing came of it in {PATIENCE_SECONDS:.0f} seconds"
    value, error = outcome
    if error is not None:
        raise error
    return value


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]


class Source:
    """Yields numbers, then perhaps an error, and counts how many numbers it has yielded."""

    def __init__(self, count: int, error: BaseException | None = None) -> None:
        self.count, self.error, self.made = count, error, 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            self.made += 1
            yield number
        if self.error is not None:
            raise self.error


def until(condition: Callable[[], bool]) -> bool:
    """Whether the condition becomes true in time."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while not condition() and time.monotonic() < ends:
        time.sleep(0.001)
    return condition()


def settled(source: Source) -> int:
    """How many items have been computed when no more are being computed."""
    made = -1
    while made != source.made:
        made = source.made
        time.sleep(0.05)
    return made


def chained(items: Any, depths: list[int], stack: ExitStack) -> Any:
    """A chain of two `ahead` with a generator between them, like the stages of a pipeline."""
    for depth in depths:
        items = stack.enter_context(ahead((item for item in items), depth))
    return items


def slowly(items: Iterator[int], first: int) -> Iterator[int]:
    """Yields the items, with a pause after each of the first few."""
    for number, item in enumerate(items):
        yield item
        if number < first:
            time.sleep(0.002)


# --- what comes out --------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(st.integers(), max_size=40), st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_every_item_comes_out_once_and_in_order(items: list[int], depths: list[int]) -> None:
    def work() -> list[int]:
        with ExitStack() as stack:
            return list(chained(items, depths, stack))

    assert within_patience(work) == items


@settings(max_examples=40)
@given(st.integers(0, 12), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 3))
def test_an_error_arrives_after_the_items_before_it_however_far_the_reader_is(
    count: int, depths: list[int], slow_for: int
) -> None:
    def work() -> list[int]:
        read: list[int] = []
        with ExitStack() as stack, pytest.raises(ZeroDivisionError, match="the cause"):
            read.extend(slowly(chained(Source(count, ZeroDivisionError("the cause")), depths, stack), slow_for))
        return read

    assert within_patience(work) == list(range(count))


def test_an_error_keeps_its_traceback() -> None:
    def fails() -> Iterator[int]:
        yield 1
        raise ValueError("found 17 where 3 belongs")

    with pytest.raises(ValueError, match="found 17 where 3 belongs") as error, ahead(fails(), 2) as items:
        list(items)
    assert "fails" in [frame.name for frame in traceback.extract_tb(error.value.__traceback__)]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError("no room")], ids=repr)
def test_errors_that_are_no_exceptions_arrive_too(error: BaseException) -> None:
    def work() -> None:
        with ExitStack() as stack:
            for _ in chained(Source(2, error), [1, 1], stack):
                pass

    with pytest.raises(type(error)) as found:
        within_patience(work)
    assert found.value is error


def test_something_that_cannot_be_iterated_over_is_an_error_and_no_hang() -> None:
    def work() -> None:
        with ahead(7, 1) as items:  # type: ignore[arg-type]
            next(items)

    with pytest.raises(TypeError, match="not iterable"):
        within_patience(work)


def test_after_the_end_there_is_only_the_end() -> None:
    def work() -> list[int]:
        with ahead(range(2), 2) as items:
            return [*items, *items, *items, next(items, -1)]

    assert within_patience(work) == [0, 1, -1]


def test_after_an_error_there_is_only_the_error() -> None:
    def work() -> None:
        with ahead(Source(0, ValueError("the cause")), 2) as items:
            for _ in range(3):
                with pytest.raises(ValueError, match="the cause"):
                    next(items)

    within_patience(work)


# --- how far ahead ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_never_more_than_depth_items_are_made_that_were_not_read(depth: int) -> None:
    """Exactly `depth` items are computed ahead, not fewer."""
    source = Source(20)
    with ahead(source, depth) as items:
        assert settled(source) == depth
        for number, item in enumerate(items):
            assert item == number
            assert source.made <= number + 1 + depth
            if number < 3:
                assert until(lambda made=number + 1 + depth: source.made == made)


def test_the_reader_and_the_thread_are_at_work_at_the_same_time() -> None:
    """Each waits for the other during its own work; if they ran one after the other, they would never end."""
    meet = threading.Barrier(2, timeout=PATIENCE_SECONDS)

    def source() -> Iterator[int]:
        for number in range(5):
            if number:
                meet.wait()
            yield number

    with ahead(source(), 1) as items:
        for item in items:
            if item < 4:
                meet.wait()


def test_a_depth_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="depth is 0"):
        ahead(range(3), 0)


def test_who_waits_for_whom_is_told() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.1)
            yield number

    with ahead(slow(), 2) as items:
        list(items)
    assert items.starved_seconds > items.blocked_seconds
    with ahead(range(3), 1) as items:
        for _ in items:
            time.sleep(0.1)
    assert items.blocked_seconds > items.starved_seconds


# --- leaving early ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [0, 1, 7])
@pytest.mark.parametrize("depths", [[1], [2, 1], [1, 3, 2]], ids=str)
def test_leaving_early_stops_every_thread_and_closes_the_source(read: int, depths: list[int]) -> None:
    source = Source(10**9)

    def work() -> list[int]:
        with ExitStack() as stack:
            items = chained(source, depths, stack)
            return [next(items) for _ in range(read)]

    assert within_patience(work) == list(range(read))
    made = source.made
    time.sleep(0.02)
    assert source.made == made, "the thread goes on"


def test_leaving_early_closes_a_generator_so_that_its_finally_runs() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.set()

    held = source()  # nobody's garbage: it is closed because it is closed
    with ahead(held, 2) as items:
        next(items)
    assert closed.is_set()
    assert next(held, None) is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_reader_that_raises_stops_everything_and_its_own_error_comes_out(error: BaseException) -> None:
    source = Source(10**9)

    def work() -> None:
        with ExitStack() as stack:
            for item in chained(source, [2, 2, 2], stack):
                if item == 5:
                    raise error

    with pytest.raises(type(error)) as found:
        within_patience(work)
    assert found.value is error


def test_a_stage_in_the_middle_that_raises_ends_the_chain_with_its_own_error() -> None:
    source = Source(10**9)

    def double(numbers: Iterator[int]) -> Iterator[int]:
        for number in numbers:
            if number == 4:
                raise ArithmeticError("cannot double 4")
            yield 2 * number

    read: list[int] = []

    def work() -> None:
        with ahead(source, 2) as numbers, ahead(double(numbers), 3) as doubles, ahead(doubles, 1) as last:
            read.extend(last)

    with pytest.raises(ArithmeticError, match="cannot double 4"):
        within_patience(work)
    assert read == [0, 2, 4, 6]


def test_leaving_waits_for_the_item_at_work() -> None:
    """What the thread works on may be used differently afterwards, so the thread must have stopped."""
    begun, at_work = threading.Event(), []

    def source() -> Iterator[int]:
        yield 0
        at_work.append(True)
        begun.set()
        time.sleep(0.1)
        at_work.clear()
        yield 1

    with ahead(source(), 2) as items:
        next(items)
        assert begun.wait(PATIENCE_SECONDS)
    assert not at_work
