"""Child processes end when asked to and when this process is killed, and their failures have a reason."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from student_train.sweep.children import Child, end_all, reason, stopped_like_ctrl_c

# Says its number, ignores SIGTERM if asked to, and sleeps.
SLEEPER = """
import os, pathlib, signal, sys, time
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
file = pathlib.Path(sys.argv[1])
file.with_suffix(".tmp").write_text(str(os.getpid()))
file.with_suffix(".tmp").rename(file)
time.sleep(60)
"""
pytestmark = pytest.mark.usefixtures("no_hang")


def child(code: str, log: Path, *arguments: object) -> Child:
    return Child([sys.executable, "-c", code, *map(str, arguments)], log, {"GIVEN": "a value"})


def number_in(file: Path) -> int:
    while not file.exists():
        time.sleep(0.01)
    return int(file.read_text())


def wait_until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"  # ended, but its new parent has not waited for it yet


def finish(started: Child) -> tuple[int, str]:
    ended = started.end(time.monotonic() + 30)
    return ended.code, reason(ended, started.log)


def test_a_child_is_counted_in_time_and_memory(tmp_path: Path) -> None:
    busy = "import os, time\nblock = bytearray(200_000_000)\nwhile time.process_time() < 0.3: pass\n"
    busy += "print(os.environ['GIVEN'])"
    started = child(busy, tmp_path / "log")
    ended = started.end(time.monotonic() + 30)
    assert ended.code == 0
    assert 0.25 < ended.cpu_seconds < 20
    assert ended.seconds >= 0.3 * 0.5
    assert 200_000_000 < ended.peak_bytes < 2_000_000_000
    log = (tmp_path / "log").read_text()
    assert log.startswith("$ ")
    assert log.endswith("a value\n")


def test_the_reason_is_the_error_of_the_last_attempt(tmp_path: Path) -> None:
    log = tmp_path / "log"
    paragraph = "import sys; print('step 1', flush=True); print('error: the dump is\\ndamaged.'); sys.exit(2)"
    assert finish(child(paragraph, log)) == (2, "the dump is damaged.")
    assert finish(child("1 / 0", log)) == (1, "ZeroDivisionError: division by zero")
    assert finish(child("raise SystemExit(3)", log)) == (3, "it ended with code 3 and printed nothing")
    deadly = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert finish(child(deadly, log)) == (-9, "killed by SIGKILL (perhaps out of memory)")


def test_children_end_when_asked_and_stubborn_ones_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("student_train.sweep.children.SECONDS_TO_END", 0.5)
    kinds = ["docile", "stubborn"]
    started = [child(SLEEPER, tmp_path / "log", tmp_path / kind, kind) for kind in kinds]
    pids = [number_in(tmp_path / kind) for kind in kinds]
    assert [ended.code for ended in end_all(started)] == [-signal.SIGTERM, -signal.SIGKILL]
    assert all(map(is_gone, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends the children of a process that was killed")
def test_children_of_a_killed_process_end(tmp_path: Path) -> None:
    us = os.fork()
    if us == 0:
        child(SLEEPER, tmp_path / "log", tmp_path / "pid", "docile")
        time.sleep(60)
        os._exit(0)
    pid = number_in(tmp_path / "pid")
    os.kill(us, signal.SIGKILL)
    os.waitpid(us, 0)
    wait_until(lambda: is_gone(pid))


@pytest.fixture
def _as_in_the_foreground() -> Iterator[None]:
    """Ctrl-C interrupts; a shell that starts the tests in the background has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_as_in_the_foreground")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_interrupt_like_ctrl_c(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stopped_like_ctrl_c():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before
