"""Damaged dumps: what is found, what changes nothing, and what is read without a word."""

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.campaign import material
from tests.campaign.attempts import Journal, Outcome
from tests.campaign.commands import limit_memory, run
from tests.campaign.damage import Damage, any_damage, apply, files_of, mend
from tests.campaign.runner import chance_of

CARD = ("README.md",)  # for people, and signed by nothing
MOST_MORE_BYTES = 1 << 30


class Flips:
    """Flipped bits and worse in every file of a dump, which is then read in every way."""

    name, goal, batch, silent_cpu_seconds = "flips", 5000, 60, 10.0

    def prepare(self, place: Path) -> None:
        """Make the dumps, and for each another one of the same kind, of fewer rows."""
        make_dumps(place)

    def attack(self, place: Path, work: Path, seed: int, numbers: Sequence[int], journal: Journal) -> None:
        """Damage one file at a time of copies of the dumps, and mend it again."""
        from tests.campaign.readings import compared, values_of

        names = list(material.DUMPS)
        wanted: dict[str, dict[str, object]] = {}
        for number in numbers:
            chance = chance_of(seed, self.name, number)
            # A process keeps to one or two dumps, whose values it has to read once.
            name = names[(number // self.batch * 2 + chance.randrange(2)) % len(names)]
            folder, whole = work / name, place / "material" / name
            if name not in wanted:
                shutil.copytree(whole, folder)
                journal.begin(number, f"undamaged dump {name}")
                wanted[name] = values_of(folder)
                limit_memory()
            damage = any_damage(chance, folder, files_of(folder, CARD), [place / "strangers" / name])
            journal.begin(number, f"dump {name}: {damage}")
            is_whole = damage.way != "remove" or not damage.file.startswith("shards/")
            look = partial(compared, folder, wanted[name], is_whole)
            outcome, words = attempt(damage, folder, whole, look)
            journal.end(outcome, words)


def attempt(damage: Damage, folder: Path, whole: Path, look: Callable[[], tuple[Outcome, str]]) -> tuple[Outcome, str]:
    """Damage, look, mend."""
    before = _bytes_in_memory()
    apply(damage, folder)
    try:
        outcome, words = look()
    finally:
        mend(damage, folder, whole)
    if _bytes_in_memory() - before > MOST_MORE_BYTES:
        return Outcome.BAD, f"took {(_bytes_in_memory() - before) / 2**20:,.0f} MiB of memory"
    return outcome, words


def make_dumps(place: Path) -> None:
    """Make every dump of the material, and for each a stranger of the same kind over the same rows."""
    for name in material.DUMPS:
        for folder, more in (
            (place / "material" / name, []),
            (place / "strangers" / name, ["--seed", "1", "--limit", "15"]),
        ):
            if folder.exists():
                continue
            folder.parent.mkdir(exist_ok=True)
            command = material.dump_command(name, str(folder.resolve()))
            ended = run([*command, *more], place / "material", place / "logs" / f"dump-{name}")
            if ended.code:
                raise RuntimeError(f"code {ended.code}, hung {ended.is_hung}: {ended.output}{ended.errors}")


def _bytes_in_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
