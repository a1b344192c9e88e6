"""Commands that run side by side as child processes, each with a log of its own, and none of which outlives us.

A child leads a process group of its own, so that Ctrl-C at a terminal reaches us alone, and we end the children: first
with SIGTERM, which loses nothing but the steps since a checkpoint. Where we are killed ourselves and can end nobody,
Linux does it (PR_SET_PDEATHSIG).
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

SECONDS_TO_END = 10.0
SECONDS_BETWEEN_LOOKS = 0.05
_PR_SET_PDEATHSIG = 1
_KIBIBYTES = sys.platform != "darwin"  # ru_maxrss is in bytes there


@dataclass(frozen=True)
class Ended:
    """How a child ended, and what it took: its exit code (negative: the signal), wall and CPU time, peak memory."""

    code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


class Child:
    """A command that has been started; both of its outputs are appended to `log`, after the command itself."""

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
        """How it ended, or None while it is at work."""
        return self._wait(os.WNOHANG)

    def send(self, number: int) -> None:
        """Send a signal to it and whatever it has started."""
        if self._process.returncode is None:  # else the number may be another process's by now
            os.killpg(self._process.pid, number)

    def end(self, deadline: float) -> Ended:
        """Wait for its end until `deadline` (time.monotonic), then kill it."""
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
        self._process.returncode = os.waitstatus_to_exitcode(status)  # Popen is not to wait for it once more
        return Ended(
            self._process.returncode,
            time.monotonic() - self._start,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * (1024 if _KIBIBYTES else 1),
        )


def end_all(children: Sequence[Child]) -> list[Ended]:
    """Ask all of them to end, and see to it that they do."""
    for child in children:
        child.send(signal.SIGTERM)
    deadline = time.monotonic() + SECONDS_TO_END
    try:
        return [child.end(deadline) for child in children]
    except BaseException:  # asked to hurry up
        for child in children:
            child.send(signal.SIGKILL)
        raise


@contextmanager
def stopped_like_ctrl_c() -> Iterator[None]:
    """While it is open, SIGTERM and SIGHUP interrupt like Ctrl-C, so that children are ended on the way out."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reason(ended: Ended, log: Path) -> str:
    """Why a child failed, in one sentence: the error that ends its log, or the signal that killed it."""
    if ended.code < 0:
        cause = " (out of memory, perhaps)" if ended.code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-ended.code).name}{cause}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last_command = max(index for index, line in enumerate(lines) if line.startswith("$ "))
    lines = [line for line in lines[last_command + 1 :] if line.strip()]
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith("error: "):
            return " ".join(lines[index:]).removeprefix("error: ")
    return lines[-1] if lines else f"it ended with code {ended.code} and said nothing"


def _end_with_parent() -> None:
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
