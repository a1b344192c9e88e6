"""The jobs of a sweep, run at the same time as the machine allows; one that fails does not stop the others."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.progress import Progress, human_seconds
from student_train.sweep.children import DISTILL, SECONDS_BETWEEN_LOOKS, Child, end_all, reason
from student_train.sweep.folder import add_cost, log_of
from student_train.sweep.machine import Machine, has_room

LONGEST_NOTE = 60


@dataclass(frozen=True)
class Job:
    """A `distill` command to run, with a name; `result` returns its result in a few words once it has succeeded."""

    name: str
    arguments: tuple[str, ...]
    result: Callable[[], str]


def work_through(jobs: Sequence[Job], output: Path, machine: Machine, done: int = 0) -> dict[str, str]:
    """Run all jobs, and return the name of each failed one -> the reason. `done` more jobs are already finished.

    No child process is left running, whether this returns or raises.
    """
    if not jobs:
        return {}
    waiting, failed, peak_bytes = list(jobs), {}, 0
    at_work: dict[int, tuple[Job, Child]] = {}
    log_of(output, "").parent.mkdir(parents=True, exist_ok=True)
    with Progress(output.name, "runs", done + len(jobs)) as progress:
        progress.advance(done)
        try:
            while waiting or at_work:
                for slot in range(machine.jobs):
                    if waiting and slot not in at_work and (not at_work or has_room(peak_bytes)):
                        job = waiting.pop(0)
                        at_work[slot] = (job, _start(job, output, machine.environment(slot)))
                        progress.note(_note([job.name for job, _ in at_work.values()]))
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for slot, (job, child) in list(at_work.items()):
                    if (ended := child.poll()) is None:
                        continue
                    del at_work[slot]
                    add_cost(output, job.name, ended)
                    peak_bytes = max(peak_bytes, ended.peak_bytes)
                    if ended.code:
                        failed[job.name] = reason(ended, child.log)
                        outcome = f"failed: {failed[job.name]}"
                    else:
                        outcome = job.result()
                    progress.say(f"{job.name}: {outcome} ({human_seconds(ended.seconds)})")
                    progress.advance(1)
                    progress.note(_note([job.name for job, _ in at_work.values()]))
        finally:
            left = list(at_work.values())
            for (job, _), ended in zip(left, end_all([child for _, child in left]), strict=True):
                add_cost(output, job.name, ended)
    return failed


def _start(job: Job, output: Path, environment: dict[str, str]) -> Child:
    return Child([sys.executable, "-m", DISTILL, *job.arguments], log_of(output, job.name), environment)


def _note(names: list[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= LONGEST_NOTE else f"{text[: LONGEST_NOTE - 1]}…"
