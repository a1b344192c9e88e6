"""The campaign itself: batches of attempts in forked processes, two at a time, until the time is over.

A batch writes down each attempt before it begins. If its process dies, or says nothing for too long, the attempt that
had begun has ended badly, and another process goes on with the next one.
"""

import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.campaign.attempts import Attempt, Journal, Outcome, read_journal
from tests.campaign.commands import cpu_seconds, in_child, redirect

# A batch that ends no attempt for so long hangs. (Commands of its own are watched more closely.)
HUNG_SECONDS = 600.0


class Kind(Protocol):
    """A kind of attack.

    Attributes:
        goal: how many attempts 30 minutes should have, by which the kinds share the time.
        batch: how many attempts a process makes.
        silent_cpu_seconds: CPU seconds after which one attempt within the process hangs.
    """

    name: str
    goal: int
    batch: int
    silent_cpu_seconds: float

    def prepare(self, place: Path) -> None:
        """Make what all attempts need, once, in a process of its own. `place`/material is there."""

    def attack(self, place: Path, work: Path, seed: int, numbers: Sequence[int], journal: Journal) -> None:
        """Make these attempts in an empty folder, and write each to the journal."""


@dataclass
class _Batch:
    kind: Kind
    numbers: list[int]
    work: Path
    pid: int
    journal: Path
    seen: int = 0
    since: float = field(default_factory=time.monotonic)
    cpu_then: float = 0.0


def chance_of(seed: int, kind: str, number: int) -> random.Random:
    """Return the random numbers of one attempt."""
    return random.Random(f"{seed}/{kind}/{number}")


def prepare(kinds: Sequence[Kind], place: Path, make_material: Callable[[Path], None]) -> None:
    """Make the material and what each kind needs. Raises RuntimeError if a command fails that must not."""
    in_child(lambda: make_material(place / "material"), place / "material.log")
    for kind in kinds:
        in_child(lambda kind=kind: kind.prepare(place), place / f"{kind.name}.log")  # type: ignore[misc]


def campaign(
    kinds: Sequence[Kind], place: Path, seed: int, seconds: float, jobs: int, say: Callable[[Attempt], None]
) -> list[Attempt]:
    """Attack until the time is over, and return all attempts. The next batch is of the kind that is furthest behind."""
    end, attempts = time.monotonic() + seconds, []
    begun = {kind.name: 0 for kind in kinds}
    spent = {kind.name: 0 for kind in kinds}
    running: list[_Batch] = []
    while running or time.monotonic() < end:
        while len(running) < jobs and time.monotonic() < end:
            kind = min(kinds, key=lambda kind: spent[kind.name] / kind.goal)
            numbers = list(range(begun[kind.name], begun[kind.name] + kind.batch))
            begun[kind.name] += kind.batch
            spent[kind.name] += kind.batch
            running.append(start(kind, numbers, place, seed))
        for batch in list(running):
            ended, left = look_at(batch, is_late=time.monotonic() > end + 30)
            for attempt in ended:
                spent[batch.kind.name] += attempt.tried - 1
                say(attempt)
            attempts += ended
            if left is None:
                continue
            running.remove(batch)
            if left and time.monotonic() < end:
                running.append(start(batch.kind, left, place, seed))
        time.sleep(0.02)
    return attempts


def one(kind: Kind, number: int, place: Path, seed: int) -> list[Attempt]:
    """Repeat one attempt, and return its outcome."""
    batch = start(kind, [number], place, seed)
    attempts: list[Attempt] = []
    while True:
        ended, left = look_at(batch)
        attempts += ended
        if left is not None:
            return attempts
        time.sleep(0.02)


def start(kind: Kind, numbers: list[int], place: Path, seed: int) -> _Batch:
    """Fork a process that makes these attempts in a folder of its own."""
    work = place / "work" / f"{kind.name}-{numbers[0]}-{time.monotonic_ns()}"
    work.mkdir(parents=True)
    journal = work.with_suffix(".journal")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            redirect(work.with_suffix(".log"), work.with_suffix(".log"))
            kind.attack(place, work, seed, numbers, Journal(journal, kind.name))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return _Batch(kind, numbers, work, pid, journal)


def look_at(batch: _Batch, is_late: bool = False) -> tuple[list[Attempt], list[int] | None]:
    """Return (attempts that have ended since the last look, the numbers that are left if its process has ended)."""
    pid, status = os.waitpid(batch.pid, os.WNOHANG)
    attempts, begun = read_journal(batch.journal)
    new, now = attempts[batch.seen :], time.monotonic()
    if new:
        batch.seen, batch.since, batch.cpu_then = len(attempts), now, cpu_seconds(batch.pid)
    is_hung = now - batch.since > HUNG_SECONDS
    if not is_hung and now - batch.since > batch.kind.silent_cpu_seconds:
        is_hung = cpu_seconds(batch.pid) - batch.cpu_then > batch.kind.silent_cpu_seconds
    if not pid and (is_hung or is_late):
        os.kill(batch.pid, signal.SIGKILL)
        pid, status = os.waitpid(batch.pid, 0)
    if not pid:
        return new, None
    done = {attempt.number for attempt in attempts}
    if begun is None and status and not is_late:  # a fault of the campaign itself
        begun = (next(number for number in batch.numbers if number not in done), "before it began")
    if begun is not None and not (is_late and not is_hung):
        words = (
            f"nothing happened for {now - batch.since:.0f} s"
            if is_hung
            else _death(status, batch.work.with_suffix(".log"))
        )
        new.append(Attempt(batch.kind.name, begun[0], begun[1], Outcome.BAD, words))
        done.add(begun[0])
    shutil.rmtree(batch.work, ignore_errors=True)
    batch.journal.unlink(missing_ok=True)
    batch.work.with_suffix(".log").unlink(missing_ok=True)
    return new, [number for number in batch.numbers if number not in done]


def _death(status: int, log: Path) -> str:
    code, said = os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8", errors="replace").split()
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with {code}"
    return f"its process ended {how}: {' '.join(said)[-300:]}"
