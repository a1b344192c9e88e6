"""Odd calls: bad values for every option and key, and whether the command ends as it should.

It ends with 0 and a result that makes sense; or with 1 or 2, one paragraph, and nothing left behind.
"""

import os
import random
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.campaign import declared, hostile, material
from tests.campaign.attempts import Journal, Outcome
from tests.campaign.commands import Command, Ended, copied, run
from tests.campaign.flips import make_dumps
from tests.campaign.runner import chance_of

OUT, STUDENT = "out", "student"
# A call that is still at work after so many CPU seconds, and says so, is interrupted.
ENOUGH_SECONDS = 9.0
INTERRUPTED = 130
MOST_BYTES = 3 << 30
KINDS_OF_CALLS = {"dump": 40, "run": 30, "eval": 10, "sweep": 6, "shards": 12, "export": 2}
State = dict[str, tuple[int, int]]


class Calls:
    """Wrong calls of all commands."""

    name, goal, batch, silent_cpu_seconds = "calls", 2000, 25, 60.0

    def prepare(self, place: Path) -> None:
        """Make dumps, a student to be scored, and the file that is small while it is compressed."""
        make_dumps(place)
        words = ("distill", "run", "plain.toml", "--set", f"output={STUDENT}")
        ended = run(words, place / "material", place / "logs" / STUDENT)
        if ended.code:
            raise RuntimeError(f"code {ended.code}, hung {ended.is_hung}: {ended.output}{ended.errors}")
        hostile.make_bomb(place)

    def attack(self, place: Path, work: Path, seed: int, numbers: Sequence[int], journal: Journal) -> None:
        """Make one odd call after the other, each in a folder of its own."""
        options, keys = declared.options(), declared.recipe_keys()
        for number in numbers:
            chance = chance_of(seed, self.name, number)
            words, extra = odd_call(chance, f"{seed}/{number}", options, keys)
            folder = copied(place / "material", work / "place")
            hostile.make_files(folder / hostile.FOLDER, place)
            for name, text in extra.items():
                (folder / name).write_text(text, encoding="utf-8")
            journal.begin(number, " ".join(map(_quoted, words)))
            journal.end(*outcome_of(words, folder, work / f"log-{number}"))
            shutil.rmtree(folder)


def odd_call(
    chance: random.Random, key: str, options: list[declared.Option], keys: list[str]
) -> tuple[list[str], dict[str, str]]:
    """Return the words of a call with 1 to 3 odd things in it, and files that it needs."""
    kind = chance.choices(list(KINDS_OF_CALLS), list(KINDS_OF_CALLS.values()))[0]
    count = chance.choice((1, 1, 1, 2, 2, 3))
    if kind == "sweep":
        return ["distill", "sweep", "odd.toml", "--dry-run"], {"odd.toml": _odd_sweep(chance, key, count)}
    if kind == "run" and chance.random() < 0.9:
        words = ["distill", "run", f"{chance.choice(list(material.RECIPES))}.toml"]
        for at in range(count):
            words += ["--set", f"{chance.choice(keys)}={hostile.drawn(hostile.values(), f'{key}/{at}')}"]
        return words, {}
    words = _plain_call(kind, chance)
    command = tuple(words[: 1 if words[0] == "dump" else 2])
    choices = [option for option in options if option.command == command]
    for at in range(count):
        _make_odd(words, chance.choice(choices), chance, f"{key}/{at}")
    return [word.replace("\0", "") for word in words], {}


def _plain_call(kind: str, chance: random.Random) -> list[str]:
    if kind == "dump":
        return material.dump_command(chance.choice(list(material.DUMPS)), OUT)
    if kind == "shards":
        command = chance.choice(("info", "head", "stats", "verify", "seal"))
        return ["shards", command, chance.choice(list(material.DUMPS))]
    if kind == "run":
        return ["distill", "run", "plain.toml"]
    return ["distill", kind, STUDENT, *(["--data", "labelled.jsonl"] if kind == "eval" else [])]


def _make_odd(words: list[str], option: declared.Option, chance: random.Random, key: str) -> None:
    """Give an option another value, or leave it out."""
    value = hostile.drawn(hostile.arguments(), key)
    first = 1 if words[0] == "dump" else 2
    if not option.flag:
        words[first : first + 1] = [value]
    elif option.flag in words and not option.is_flag:
        at = words.index(option.flag)
        words[at : at + 2] = [] if chance.random() < 0.1 else [option.flag, value]
    else:
        words += [option.flag] if option.is_flag else [option.flag, value]


def _odd_sweep(chance: random.Random, key: str, count: int) -> str:
    """Return a sweep file with odd values of some keys."""
    keys: dict[str, str] = {"output": '"out"', "recipe": '"swept.toml"', "seeds": "[0, 1]"}
    variant: dict[str, str] = {}
    for at in range(count):
        name = chance.choice(declared.sweep_keys())
        table = variant if name.startswith("variant.0.") else keys
        table[name.removeprefix("variant.0.")] = hostile.drawn(hostile.values(), f"{key}/{at}")
    lines = [f"{name} = {value}" for name, value in keys.items()]
    if variant:
        lines += ["[[variant]]", *(f"{name} = {value}" for name, value in ({"name": '"one"'} | variant).items())]
    return "\n".join(lines) + "\n"


def outcome_of(words: list[str], folder: Path, log: Path) -> tuple[Outcome, str]:
    """Make the call, and say how it ended."""
    before = state_of(folder)
    command = Command(words, folder, log)
    ended = command.wait(ENOUGH_SECONDS)
    is_long = ended is None
    if ended is None:
        command.send(signal.SIGINT)
        ended = command.wait()
        assert ended is not None
    text = " ".join(ended.errors.split())[-300:]
    if ended.fault:
        return Outcome.BAD, ended.fault
    if is_long and not (ended.output + ended.errors.rpartition("error: ")[0]).strip():
        return Outcome.BAD, f"said nothing for {ENOUGH_SECONDS:.0f} s"
    if ended.code not in ((0, 1, 2, INTERRUPTED) if is_long else (0, 1, 2)):
        return Outcome.BAD, f"ended with {ended.code}: {text}"
    if ended.peak_bytes > MOST_BYTES:
        return Outcome.BAD, f"took {ended.peak_bytes / 2**20:,.0f} MiB of memory"
    fault = _changed(words, before, folder, ended)
    if fault is None and ended.code == 0:
        fault = _nonsense(words, folder, log, ended)
    if fault:
        return (Outcome.SILENT if ended.code == 0 else Outcome.BAD), fault
    if is_long:
        return Outcome.HARMLESS, "interrupted"
    if ended.code and ended.paragraph is None and words[:2] != ["shards", "verify"]:
        return Outcome.BAD, f"not one paragraph: {ended.errors[-300:]!r}"
    return (Outcome.FOUND if ended.code else Outcome.HARMLESS), text


def state_of(folder: Path) -> State:
    """Return the size and time of each file in a folder, and of each folder."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent) / name
            facts = path.lstat()
            found[path.relative_to(folder).as_posix()] = (
                (0, 0) if name in folders else (facts.st_size, facts.st_mtime_ns)
            )
    return found


def _changed(words: list[str], before: State, folder: Path, ended: Ended) -> str | None:
    """What a call may not have done to the files that were there, or left behind."""
    after = state_of(folder)
    changed = [name for name in before if after.get(name) != before[name]]
    written = {words[at + 1] for at, word in enumerate(words[:-1]) if word in ("--json", "--plot")}
    if words[:2] == ["distill", "export"] or words[:2] == ["shards", "seal"]:
        written |= set(changed)
    if others := [name for name in changed if name not in written]:
        return f"it changed {others[:4]}"
    new = [name for name in after if name not in before]
    if half := [name for name in new if name.endswith(".tmp")]:
        return f"it left {half[:4]}" if ended.code != INTERRUPTED else None
    can_go_on = ended.code in (1, INTERRUPTED) and any(name.endswith(("manifest.json", "recipe.json")) for name in new)
    if ended.code and new and not can_go_on:
        return f"ended with {ended.code} and left {new[:4]}: {' '.join(ended.errors.split())[-150:]}"
    return None


def _nonsense(words: list[str], folder: Path, log: Path, ended: Ended) -> str | None:
    """What does not make sense in the result of a call that has ended with 0."""
    if re.search(r"\bnan\b", ended.output.lower()):
        return f"it prints nan: {ended.output[-300:]}"
    if words[0] == "dump" and "--dry-run" not in words and "--help" not in words:
        out = words[words.index("--out") + 1]
        if "://" in out:
            return None
        checked = run(("shards", "verify", "--", out), folder, log.with_name("verify"))
        return f"its dump: {(checked.fault or checked.errors)[-300:]}" if checked.code else None
    if words[:2] == ["distill", "run"]:
        for path in folder.rglob("model.safetensors"):
            for name, value in load_file(path).items():
                if not np.isfinite(value).all():
                    return f"{path.relative_to(folder)}: {name} has values that are not finite"
    return None


def _quoted(word: str) -> str:
    text = word if word.isprintable() and word and " " not in word else repr(word)
    return text if len(text) < 120 else f"{text[:60]}...({len(text)} characters)"
