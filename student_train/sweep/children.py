"""Commands that run at the same time as child processes, each with its own log; none runs on after this process ends.

Each child leads a process group of its own, so that Ctrl-C at a terminal reaches only this process. It then ends the
children, first with SIGTERM, after which a run can be resumed from its last checkpoint. If this process is killed,
Linux ends the children (PR_SET_PDEATHSIG).
"""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

DISTILL = "student_train.cli"  # the module that a sweep runs
SECONDS_TO_END = 10.0
SECONDS_BETWEEN_LOOKS = 0.05
_PR_SET_PDEATHSIG = 1
_KIBIBYTES = sys.platform != "darwin"  # ru_maxrss is in bytes there


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (negative: the signal that killed it), wall and CPU time, peak memory."""

    code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


class Child:
    """A started command; the command line and then its stdout and stderr are appended to `log`."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log, self._start = log, time.monotonic()
        with log.open("a", encoding="utf-8") as output:
            output.write(f"$ {shlex.join(command)}\n")
            output.flush()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                process_group=0,
                preexec_fn=_end_with_parent if _LIBC is not None else None,
            )

    def poll(self) -> Ended | None:
        """Return how it ended, or None while it is running."""
        return self._wait(os.WNOHANG)

    def send(self, number: int) -> None:
        """Send a signal to the child and all processes that it has started."""
        if self._process.returncode is None:  # afterwards the id may belong to another process
            os.killpg(self._process.pid, number)

    def end(self, deadline: float) -> Ended:
        """Wait for its end until `deadline` (as of time.monotonic), then kill it. Return how it ended."""
        while time.monotonic() < deadline:
            if (ended := self.poll()) is not None:
                return ended
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self.send(signal.SIGKILL)
        ended = self._wait(0)
        assert ended is not None
        return ended

    def _wait(self, options: int) -> Ended | None:
        pid, status, usage = os.wait4(self._process.pid, options)
        if not pid:
            return None
        self._process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it again
        return Ended(
            self._process.returncode,
            time.monotonic() - self._start,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * (1024 if _KIBIBYTES else 1),
        )


def end_all(children: Sequence[Child]) -> list[Ended]:
    """End all children: ask them to, and kill those that take too long."""
    for child in children:
        child.send(signal.SIGTERM)
    deadline = time.monotonic() + SECONDS_TO_END
    try:
        return [child.end(deadline) for child in children]
    except BaseException:  # for instance a second Ctrl-C
        for child in children:
            child.send(signal.SIGKILL)
        raise


@contextmanager
def stopped_like_ctrl_c() -> Iterator[None]:
    """While open, handle SIGTERM and SIGHUP like Ctrl-C, so that the children are ended before this process is."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reason(ended: Ended, log: Path) -> str:
    """Return in one sentence why a child failed: the error at the end of its log, or the signal that killed it."""
    if ended.code < 0:
        cause = " (perhaps out of memory)" if ended.code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-ended.code).name}{cause}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last_command = max(index for index, line in enumerate(lines) if line.startswith("$ "))
    lines = [line for line in lines[last_command + 1 :] if line.strip()]
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith("error: "):
            return " ".join(lines[index:]).removeprefix("error: ")
    return lines[-1] if lines else f"it ended with code {ended.code} and printed nothing"


def is_log(path: Path) -> bool:
    """Whether a file is the log of a `distill` command, as `Child` begins it."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return False
    return start.startswith(b"$ ") and DISTILL.encode() in start


def _end_with_parent() -> None:
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
