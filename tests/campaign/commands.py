"""The command lines, in processes that are forked from a warm one (0.02 s in place of 3 s) or begin from nothing.

Each runs in a session of its own, with its output in files, and is watched: a command that says nothing for long is
ended, and `Ended.is_hung` says so.
"""

import gc
import importlib
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MODULES = {"dump": "teacher_dump.cli", "distill": "student_train.cli", "shards": "shared.dump.cli"}
# What commands import when they need it; the warm process has it already.
PRELOADED = (
    "numpy",
    "polars",
    "pyarrow.parquet",
    "sklearn.metrics",
    "shared.dump.dump",
    "shared.dump.inspection",
    "student_train.distill",
    "student_train.scoring.evaluate",
    "student_train.sweep",
    "teacher_dump.annotate",
    "teacher_dump.estimate",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
)
# A command hangs after so many silent seconds of its own CPU time, or if for so long nothing in its session works.
SILENT_CPU_SECONDS, IDLE_SECONDS, IDLE_CPU_SECONDS = 10.0, 45.0, 0.3
MORE_BYTES = 4 << 30
BETWEEN_LOOKS = 0.004
TRACEBACK = "Traceback (most recent call last)"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; negative, the signal that ended it.
        is_hung: whether it was ended because it said nothing for too long.
        peak_bytes: the most memory that it had.
    """

    code: int
    output: str
    errors: str
    seconds: float
    is_hung: bool
    peak_bytes: int

    @property
    def fault(self) -> str | None:
        """What no command may do, whatever it is given; None if it did nothing of the kind."""
        text = self.output + self.errors
        if self.is_hung:
            return "said nothing for too long"
        if TRACEBACK in text:
            return "traceback: " + " | ".join(text.strip().splitlines()[-2:])[-300:]
        if _CONTROL.search(text.replace("\r", "")):
            return f"control characters in its output: {_CONTROL.findall(text)[:5]}"
        return None

    @property
    def paragraph(self) -> str | None:
        """The error in one paragraph that ends stderr; None if there is none."""
        head, found, paragraph = ("\n" + self.errors).rpartition("\nerror: ")
        return paragraph.strip() if found and "\n\n" not in paragraph.strip() and "\nerror: " not in head else None


class Command:
    """A running command. `log` is a file name whose endings .out and .err are its output."""

    def __init__(self, words: Sequence[str], folder: Path, log: Path, is_fresh: bool = False) -> None:
        self._out, self._err = log.with_name(log.name + ".out"), log.with_name(log.name + ".err")
        self._start = self._last_word = time.monotonic()
        self._said, self._cpu_then = 0, 0.0
        self._last_look, self._all_then = self._start, 0.0
        log.parent.mkdir(parents=True, exist_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            _become(words, folder, self._out, self._err, is_fresh)

    def send(self, number: int) -> None:
        """Send a signal to the command alone, as `kill` does."""
        os.kill(self.pid, number)

    def ended(self) -> Ended | None:
        """Return how it ended, None while it runs. A command that says nothing for too long is killed."""
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid:
            return self._result(status, usage, False)
        now, said = time.monotonic(), self._out.stat().st_size + self._err.stat().st_size if self._err.exists() else 0
        if said != self._said:
            self._said, self._last_word, self._cpu_then = said, now, cpu_seconds(self.pid)
            self._last_look, self._all_then = now, 0.0
        elif now - self._last_word > SILENT_CPU_SECONDS and (
            cpu_seconds(self.pid) - self._cpu_then > SILENT_CPU_SECONDS or self._is_idle(now)
        ):
            self.kill()
            _, status, usage = os.wait4(self.pid, 0)
            return self._result(status, usage, True)
        return None

    def wait(self, at_most: float = float("inf")) -> Ended | None:
        """Return how it ended, or None after `at_most` seconds of its own CPU time."""
        while (ended := self.ended()) is None:
            time.sleep(BETWEEN_LOOKS)
            if at_most < float("inf") and cpu_seconds(self.pid) > at_most:
                return None
        return ended

    def kill(self) -> None:
        """End it and what it has started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(self.pid, signal.SIGKILL)

    def _is_idle(self, now: float) -> bool:
        """Whether its session has used no CPU since the last look; one look in IDLE_SECONDS."""
        if now - self._last_look < IDLE_SECONDS:
            return False
        before, self._all_then, self._last_look = self._all_then, session_cpu_seconds(self.pid), now
        return abs(self._all_then - before) < IDLE_CPU_SECONDS

    def _result(self, status: int, usage: resource.struct_rusage, is_hung: bool) -> Ended:
        texts = [path.read_bytes().decode(errors="replace") if path.exists() else "" for path in (self._out, self._err)]
        code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - self._start
        return Ended(code, *texts, seconds, is_hung, usage.ru_maxrss * 1024)


def run(words: Sequence[str], folder: Path, log: Path, is_fresh: bool = False) -> Ended:
    """Run a command to its end."""
    ended = Command(words, folder, log, is_fresh).wait()
    assert ended is not None
    return ended


def warm_up() -> None:
    """Import everything that commands import, before anything is forked. No thread may be started here or later."""
    import torch

    torch.set_num_threads(1)
    for name in (*MODULES.values(), *PRELOADED):
        importlib.import_module(name)
    from student_train.scoring import evaluate

    evaluate.LATENCY_SECONDS = 0.0
    os.fsync = lambda descriptor: None  # nobody pulls the plug, and a flush takes milliseconds
    gc.collect()
    gc.freeze()


def in_child(function: Callable[[], None], log: Path) -> None:
    """Run a function in a forked process. Raises RuntimeError with its output if it fails."""
    pid = os.fork()
    if pid == 0:
        redirect(log, log)
        _exit_with(function)
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(log.read_text(encoding="utf-8", errors="replace"))


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process; 0 if it has ended."""
    fields = _status(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def session_cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of all processes of the session that a process leads."""
    everyone = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return sum(cpu_seconds(other) for other in everyone if (fields := _status(other)) and int(fields[3]) == pid)


def _status(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def copied(source: Path, target: Path) -> Path:
    """Return a fresh copy of a folder."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target, symlinks=True))


def limit_memory() -> None:
    """Let this process have only so much more memory than it has now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MORE_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _become(words: Sequence[str], folder: Path, out: Path, err: Path, is_fresh: bool) -> None:
    os.setsid()
    os.chdir(folder)
    redirect(out, err)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    limit_memory()
    name, *arguments = words
    if is_fresh:
        os.execv(sys.executable, [sys.executable, "-m", MODULES[name], *arguments])
    sys.argv = [name, *arguments]
    _exit_with(sys.modules[MODULES[name]].main)


def _exit_with(function: Callable[[], None]) -> None:
    code: object = 0
    try:
        function()
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def redirect(out: Path, err: Path) -> None:
    """Let this process read nothing, and write its output into files."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
