import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from shared.deadline import deadline


def in_a_thread(work: Callable[[], None]) -> None:
    """Run it in a thread as well, and raise what it raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def endless() -> None:
    with deadline(0.1):
        while True:
            pass


@pytest.mark.parametrize("where", [lambda work: work(), in_a_thread])
def test_endless_code_is_stopped(where: Callable[[Callable[[], None]], None]) -> None:
    with pytest.raises(TimeoutError, match=r"not finished after 0\.1 seconds"):
        where(endless)


def test_finished_code_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.deadline.SECONDS_BETWEEN_LOOKS", 0.0005)
    for pause in (0.0, 0.0005, 0.001, 0.0015, 0.002) * 40:
        with suppress(TimeoutError), deadline(0.001):
            time.sleep(pause)
    sum(range(100_000))  # an exception that came too late would be raised here


def test_an_exception_of_the_code_is_its_own() -> None:
    with pytest.raises(ZeroDivisionError), deadline(5):
        1 / 0  # noqa: B018
