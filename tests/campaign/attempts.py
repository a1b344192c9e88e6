"""What a campaign counts: attempts and their outcomes, written down before and after each, and the table of them."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class Outcome(StrEnum):
    """How an attempt ended. Only SILENT and BAD are faults."""

    FOUND = "found"  # an error in one paragraph that names what is wrong
    HARMLESS = "harmless"  # everything is as without the attack
    UNSIGNED = "unsigned"  # other values, in files that nothing signs (weights of models, checkpoints)
    SILENT = "silent"  # other values without a word
    BAD = "ended badly"  # a traceback, a signal, a hang, half-written files


FAULTS = (Outcome.SILENT, Outcome.BAD)


@dataclass(frozen=True)
class Attempt:
    """One finished attempt.

    Attributes:
        number: with the seed, all that its attack depends on.
        what: the attack in words; `words`: what was seen.
        tried: how many attacks it stands for (a command may be killed several times before it is finished).
    """

    kind: str
    number: int
    what: str
    outcome: Outcome
    words: str = ""
    tried: int = 1


class Journal:
    """The file in which a process that attacks says what it begins and how it ended, so that its death has a name."""

    def __init__(self, path: Path, kind: str) -> None:
        self._file, self._kind = path.open("a", encoding="utf-8"), kind
        self._begun: tuple[int, str] = (-1, "")

    def begin(self, number: int, what: str) -> None:
        """Say which attempt begins."""
        self._begun = (number, what)
        self._write({"number": number, "what": what})

    def end(self, outcome: Outcome, words: str = "", tried: int = 1) -> None:
        """Say how the attempt that has begun ended."""
        number, what = self._begun
        self._write(asdict(Attempt(self._kind, number, what, outcome, words, tried)))

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def read_journal(path: Path) -> tuple[list[Attempt], tuple[int, str] | None]:
    """Return (the attempts that have ended, number and words of the one that has not)."""
    ended: list[Attempt] = []
    begun: tuple[int, str] | None = None
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
        if not line.endswith("\n"):
            break  # it is being written
        entry = json.loads(line)
        if "outcome" in entry:
            ended.append(Attempt(**{**entry, "outcome": Outcome(entry["outcome"])}))
            begun = None
        else:
            begun = (entry["number"], entry["what"])
    return ended, begun


def table(attempts: Sequence[Attempt], kinds: Iterable[str]) -> str:
    """Return the table of kinds and outcomes."""
    lines = [f"{'':<12}{'tried':>12}" + "".join(f"{outcome:>12}" for outcome in Outcome)]
    for kind in kinds:
        counts: Counter[Outcome] = Counter()
        for attempt in attempts:
            if attempt.kind == kind:
                counts[attempt.outcome] += attempt.tried
        lines.append(f"{kind:<12}{counts.total():>12,}" + "".join(f"{counts[outcome]:>12,}" for outcome in Outcome))
    return "\n".join(lines)


def faults(attempts: Sequence[Attempt], seed: int) -> list[str]:
    """Return a few lines for each fault: how to repeat it, what was done, and what was seen."""
    found = [attempt for attempt in attempts if attempt.outcome in FAULTS]
    return [
        f"{attempt.outcome}: python -m tests.campaign --seed {seed} --repeat {attempt.kind} {attempt.number}\n"
        f"    {attempt.what}\n    {attempt.words}"
        for attempt in sorted(found, key=lambda attempt: (attempt.kind, attempt.number))
    ]


def as_json(attempts: Sequence[Attempt], seed: int, minutes: float) -> str:
    """Return the result as JSON: counts by kind and outcome, and every fault."""
    counts: dict[str, dict[str, int]] = {}
    for attempt in attempts:
        of_kind = counts.setdefault(attempt.kind, dict.fromkeys(["tried", *Outcome], 0))
        of_kind["tried"] += attempt.tried
        of_kind[attempt.outcome] += attempt.tried
    bad = [asdict(attempt) for attempt in attempts if attempt.outcome in FAULTS]
    return json.dumps({"seed": seed, "minutes": minutes, "counts": counts, "faults": bad}, indent=2) + "\n"
