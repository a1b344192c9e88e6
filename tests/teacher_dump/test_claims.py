"""Claims: a shard belongs to one process at a time, and to nobody once that process is gone."""

import errno
import fcntl
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from shared.errors import DumpError
from teacher_dump.claims import CLAIMS, Claims

PATIENCE_SECONDS = 20.0


def serve(folder: Path, orders: Connection) -> None:
    """Another process with claims: does what it is told, method by method, and answers."""
    with Claims(folder) as claims:
        alone: Any = None
        while True:
            name, *arguments = orders.recv()
            if name == "enter alone":
                alone = claims.alone()
                orders.send("asking")
                alone.__enter__()
                orders.send(os.fstat(claims._file).st_ino)
            elif name == "leave alone":
                orders.send(alone.__exit__(None, None, None))
            else:
                orders.send(getattr(claims, name)(*arguments))


class Other:
    """Another process that claims in the same folder."""

    def __init__(self, folder: Path) -> None:
        # Forked before anything is claimed: it starts at once, and locks are not inherited.
        context = multiprocessing.get_context("fork")
        self.orders, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(folder, theirs), daemon=True)
        self.process.start()

    def tell(self, *order: Any) -> Any:
        self.orders.send(order)
        return self.answer()

    def answer(self) -> Any:
        assert self.orders.poll(PATIENCE_SECONDS), "hangs"
        return self.orders.recv()

    def is_waiting(self) -> bool:
        return not self.orders.poll(0.1)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    process = Other(tmp_path)
    yield process
    process.kill()


@pytest.fixture
def claims(tmp_path: Path, other: Other) -> Iterator[Claims]:
    with Claims(tmp_path) as mine:
        yield mine


# --- shards ----------------------------------------------------------------------------------------------------------


def test_a_shard_that_another_process_has_cannot_be_claimed_until_it_lets_go(claims: Claims, other: Other) -> None:
    assert other.tell("claim", 3)
    assert not claims.claim(3)
    assert not claims.is_free(3)
    assert claims.claim(2), "the one before it is another shard"
    assert claims.claim(4), "the one after it is another shard"
    other.tell("release", 3)
    assert claims.is_free(3)
    assert claims.claim(3)
    assert not other.tell("claim", 3)
    assert [other.tell("is_free", shard) for shard in (1, 2, 3, 4, 5)] == [True, False, False, False, True]


def test_ones_own_shard_is_not_claimed_twice_and_is_not_free(claims: Claims) -> None:
    """The lock alone would let it: the system's locks are the process's, whichever thread asks."""
    assert claims.claim(0)
    assert not claims.claim(0)
    assert not claims.is_free(0)
    claims.release(0)
    assert claims.is_free(0)
    assert claims.claim(0)


def test_asking_whether_a_shard_is_free_does_not_take_it(claims: Claims, other: Other) -> None:
    assert claims.is_free(7)
    assert other.tell("claim", 7)


def test_asking_whether_a_shard_is_free_does_not_let_go_of_ones_own(claims: Claims, other: Other) -> None:
    assert claims.claim(7)
    assert not claims.is_free(7)
    assert not other.tell("claim", 7)


def test_a_killed_process_has_no_shard(claims: Claims, other: Other) -> None:
    assert other.tell("claim", 0)
    assert other.tell("claim", 5)
    os.kill(other.process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    other.process.join()
    assert claims.claim(0)
    assert claims.claim(5)


def test_leaving_lets_go_of_everything(tmp_path: Path, other: Other) -> None:
    with Claims(tmp_path) as mine:
        assert mine.claim(1)
    assert other.tell("claim", 1)


def test_claims_write_nothing(claims: Claims, other: Other) -> None:
    claims.claim(10**6)
    assert claims.path.stat().st_size == 0


# --- alone -----------------------------------------------------------------------------------------------------------


def test_alone_keeps_another_process_waiting_until_it_ends(claims: Claims, other: Other) -> None:
    with claims.alone():
        assert other.tell("enter alone") == "asking"
        assert other.is_waiting()
    assert other.answer() == claims.path.stat().st_ino


def test_alone_waits_for_nobody_who_was_killed_in_it(claims: Claims, other: Other) -> None:
    assert other.tell("enter alone") == "asking"
    other.answer()
    other.kill()
    with claims.alone():
        pass


def test_alone_takes_no_shard(claims: Claims, other: Other) -> None:
    with claims.alone():
        assert other.tell("claim", 0)


def test_an_error_in_alone_ends_it(claims: Claims, other: Other) -> None:
    with pytest.raises(ZeroDivisionError), claims.alone():
        _ = 1 / 0
    assert other.tell("enter alone") == "asking"
    other.answer()


def test_whoever_waited_while_the_file_was_removed_ends_up_on_the_one_that_is_there(
    tmp_path: Path, claims: Claims, other: Other
) -> None:
    """Else it would be alone on a file that nobody else can see, and a third process on another."""
    third = Other(tmp_path)
    try:
        with claims.alone():
            assert other.tell("enter alone") == "asking"
            assert third.tell("enter alone") == "asking"
            assert other.is_waiting()
            claims.remove()
        waiters = [other, third]
        first = next(each for each in waiters * 100 if not each.is_waiting())
        (second,) = (each for each in waiters if each is not first)
        assert first.answer() == (tmp_path / CLAIMS).stat().st_ino
        assert second.is_waiting(), "two are alone at once"
        first.tell("leave alone")
        assert second.answer() == (tmp_path / CLAIMS).stat().st_ino
    finally:
        third.kill()


def test_a_file_that_was_removed_is_removed_without_complaint(claims: Claims) -> None:
    claims.remove()
    claims.remove()
    assert not claims.path.exists()
    with claims.alone():
        assert claims.path.exists()


# --- file systems without locks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_without_locks_the_error_says_so(missing: int, claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any) -> None:
        raise OSError(missing, os.strerror(missing))

    monkeypatch.setattr(fcntl, "lockf", refused)
    with pytest.raises(DumpError, match=r"\.claims: files cannot be locked here .* another file system"):
        claims.claim(0)
    with pytest.raises(DumpError, match="cannot be locked"), claims.alone():
        pass


@pytest.mark.parametrize("taken", [errno.EACCES, errno.EAGAIN], ids=errno.errorcode.get)
def test_either_word_for_taken_is_understood(taken: int, claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    """POSIX lets a system choose."""

    def refused(*arguments: Any) -> None:
        raise OSError(taken, os.strerror(taken))

    monkeypatch.setattr(fcntl, "lockf", refused)
    assert not claims.claim(0)


def test_a_reading_thread_and_a_writing_thread_may_claim_and_release(claims: Claims, other: Other) -> None:
    """As in a run: one thread claims ahead, another lets go of what is written."""
    claimer = threading.Thread(target=lambda: [claims.claim(shard) for shard in range(200)])
    claimer.start()
    for shard in range(0, 200, 2):
        while shard not in claims.held and claimer.is_alive():
            pass
        claims.release(shard)
    claimer.join()
    assert claims.held == set(range(1, 200, 2))
    assert [shard for shard in range(200) if other.tell("claim", shard)] == list(range(0, 200, 2))
