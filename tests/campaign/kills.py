"""Commands that are killed at random moments and continued until they are done, as if nothing had happened.

One attempt is one command and all its kills; the table counts kills.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.campaign import material
from tests.campaign.attempts import Journal, Outcome
from tests.campaign.commands import Command, Ended, copied, run
from tests.campaign.damage import files_of
from tests.campaign.flips import make_dumps
from tests.campaign.runner import chance_of

OUT = "out"
MOST_KILLS = 6
SIGNALS = {signal.SIGKILL: 10, signal.SIGTERM: 4, signal.SIGINT: 4, signal.SIGSTOP: 2}
INTERRUPTED = 130
# Of 100 commands so many begin as processes of their own, which takes seconds.
FRESH = 4
SECONDS_FOR_CHILDREN = 15.0
# Files with times or paths in them, of which only the names are compared.
NOT_EXACT = (
    "README.md",
    "metrics.json",
    "stages.json",
    "training_args.bin",
    "pareto.png",
    "results.csv",
    "results.parquet",
)
NOT_COMPARED = ("logs/",)


@dataclass(frozen=True)
class Story:
    """A command, how it is continued, and how often it is tried.

    Attributes:
        codes: exit codes beside 0 and the signal's own: sweeps end their children at SIGTERM as at Ctrl-C.
    """

    command: tuple[str, ...]
    more: tuple[str, ...] = ()
    often: int = 10
    is_exact: bool = True
    codes: tuple[int, ...] = ()


STORIES = {
    **{f"dump {name}": Story(tuple(material.dump_command(name, OUT)), often=6) for name in material.DUMPS},
    **{
        f"run {name}": Story(("distill", "run", f"{name}.toml"), ("--resume",), often, is_exact=False)
        for name, often in (("plain", 8), ("scored", 10), ("staged", 14), ("files", 4))
    },
    "sweep": Story(("distill", "sweep", "sweep.toml"), (), 1, is_exact=False, codes=(INTERRUPTED,)),
}


class Kills:
    """SIGKILL, SIGTERM, SIGINT, stop and continue."""

    # It looks at files without a pause, to kill between two of them; the commands themselves are watched.
    name, goal, batch, silent_cpu_seconds = "kills", 300, 3, float("inf")

    def prepare(self, place: Path) -> None:
        """Run every command undisturbed, and keep what it makes and how long it takes."""
        make_dumps(place)
        seconds = {}
        for name, story in STORIES.items():
            folder = copied(place / "material", place / "references" / name)
            ended = run(story.command, folder, place / "logs" / name)
            if ended.code:
                raise RuntimeError(f"{name}: code {ended.code}, hung {ended.is_hung}: {ended.output}{ended.errors}")
            seconds[name] = ended.seconds
        (place / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")

    def attack(self, place: Path, work: Path, seed: int, numbers: Sequence[int], journal: Journal) -> None:
        """Kill and continue one command after the other."""
        seconds = json.loads((place / "seconds.json").read_text(encoding="utf-8"))
        for number in numbers:
            chance = chance_of(seed, self.name, number)
            name = chance.choices(list(STORIES), [story.often for story in STORIES.values()])[0]
            is_fresh = chance.randrange(100) < FRESH and name != "sweep"
            journal.begin(number, f"{name}, in a new process" if is_fresh else name)
            folder = copied(place / "material", work / "place")
            tried, outcome, words = killed(
                STORIES[name], folder, place / "references" / name, seconds[name], chance, is_fresh
            )
            journal.end(outcome, words, max(tried, 1))
            shutil.rmtree(folder)


def killed(
    story: Story, folder: Path, reference: Path, seconds: float, chance: random.Random, is_fresh: bool
) -> tuple[int, Outcome, str]:
    """Kill a command some times, let it end, and compare. Returns (number of kills, outcome, words)."""
    told: list[str] = []
    wanted, command = chance.randint(1, MOST_KILLS), story.command
    while len(told) < wanted:
        log = folder.parent / f"log-{len(told)}"
        running = Command(command, folder, log, is_fresh)
        number = chance.choices(list(SIGNALS), list(SIGNALS.values()))[0]
        told.append(f"{number.name} {_wait(running, folder / OUT, seconds * (8 if is_fresh else 1), chance)}")
        ended = _signal(running, number, chance)
        if fault := _fault(ended, number, story, folder):
            return len(told), Outcome.BAD, f"{', '.join(told)}: {fault}"
        command = (*story.command, *story.more)
        if ended.code == 0:
            break
    if ended.code:
        ended = run(command, folder, folder.parent / "log-last")
        if ended.code or ended.fault:
            fault = ended.fault or f"ends with {ended.code}: {' '.join(ended.errors.split())[-400:]}"
            return len(told), Outcome.BAD, f"{', '.join(told)}: continued, it {fault}"
    difference = _difference(folder / OUT, reference / OUT, story)
    if difference:
        return (
            len(told),
            Outcome.SILENT if difference.endswith("differs") else Outcome.BAD,
            f"{', '.join(told)}: {difference}",
        )
    return len(told), Outcome.HARMLESS, ""


def _wait(running: Command, out: Path, seconds: float, chance: random.Random) -> str:
    """Wait some time, or until some files of the output folder have changed; return what was waited for."""
    start, most = time.monotonic(), chance.uniform(0, 1.1) * seconds
    if chance.random() < 0.4:
        while time.monotonic() - start < most and _is_running(running):
            time.sleep(min(0.01, most))
        return f"after {most:.3f} s"
    changes, seen = chance.randint(1, 40), None
    left = changes
    while left and _is_running(running) and time.monotonic() - start < 20 * seconds:
        now = _look(out)
        left -= now != seen
        seen = now
    return f"after {changes - left} changes"


def _look(out: Path) -> list[tuple[str, int]]:
    found = []
    for folder, _, files in os.walk(out):
        for name in files:
            try:
                found.append((os.path.join(folder, name), os.stat(os.path.join(folder, name)).st_size))
            except FileNotFoundError:
                continue
    return sorted(found)


def _is_running(running: Command) -> bool:
    return os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _signal(running: Command, number: signal.Signals, chance: random.Random) -> Ended:
    running.send(number)
    if number is signal.SIGSTOP:
        time.sleep(chance.uniform(0, 0.3))
        running.send(signal.SIGCONT)
    ended = running.wait()
    assert ended is not None
    return ended


def _fault(ended: Ended, number: signal.Signals, story: Story, folder: Path) -> str | None:
    """What must not happen to a command that gets a signal."""
    if ended.fault:
        return ended.fault
    allowed = {0, -number, *story.codes}
    if number is signal.SIGINT:
        # A shell calls both 130. Python ends by the signal if it comes before the first line of Python, or while a
        # class is made from a text (dataclasses), whatever becomes of the exception afterwards.
        allowed = {0, INTERRUPTED, -number}
    if ended.code not in allowed:
        return f"ended with {ended.code}: {' '.join(ended.errors.split())[-300:]}"
    return _left_running(folder)


def _left_running(folder: Path) -> str | None:
    """Whether a process still works in the folder, which its parent should have ended."""
    end = time.monotonic() + SECONDS_FOR_CHILDREN
    while found := [process.name for process in Path("/proc").glob("[0-9]*") if _works_in(process, folder)]:
        if time.monotonic() > end:
            return f"processes {', '.join(found)} run on"
        time.sleep(0.1)
    return None


def _works_in(process: Path, folder: Path) -> bool:
    try:
        return os.readlink(process / "cwd") == str(folder)
    except OSError:
        return False


def _difference(out: Path, reference: Path, story: Story) -> str | None:
    """What differs from an undisturbed run; files with times in them are not compared."""
    names, wanted = (
        [name for name in files_of(folder) if not name.startswith(NOT_COMPARED)] for folder in (out, reference)
    )
    if names != wanted:
        more, fewer = sorted(set(names) - set(wanted)), sorted(set(wanted) - set(names))
        return f"it leaves {more[:4]} and lacks {fewer[:4]}"
    for name in names:
        is_exact = story.is_exact or (Path(name).name not in NOT_EXACT and not name.startswith("costs"))
        if is_exact and (out / name).read_bytes() != (reference / name).read_bytes():
            return f"{name} differs"
    return None
