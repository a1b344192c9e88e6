"""Damages of files: flipped bits, cuts, zeroed ranges, files that have changed places."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

# How often each is tried, of 20.
WAYS = {"flip": 11, "cut": 3, "zero": 3, "swap": 1, "foreign": 1, "remove": 1}


@dataclass(frozen=True)
class Damage:
    """One damage of a folder's file; `other` is the file that takes its place, or changes places with it."""

    way: str
    file: str
    at: int = 0
    bit: int = 0
    count: int = 0
    other: str = ""

    def __str__(self) -> str:
        details = {
            "flip": f"bit {self.bit} of byte {self.at}",
            "cut": f"to {self.at} bytes",
            "zero": f"{self.count} bytes from {self.at}",
            "swap": f"with {self.other}",
            "foreign": f"is now {self.other}",
            "remove": "",
        }
        return f"{self.way} {self.file} {details[self.way]}".strip()


def any_damage(chance: random.Random, folder: Path, files: list[str], strangers: list[Path]) -> Damage:
    """Return some damage of one of these files; `strangers` are folders of the same kind."""
    file = chance.choice(files)
    size, way = (folder / file).stat().st_size, chance.choices(list(WAYS), list(WAYS.values()))[0]
    alike = [name for name in files if name != file and Path(name).suffix == Path(file).suffix]
    theirs = [stranger / file for stranger in strangers if (stranger / file).exists()]
    if way == "swap" and alike:
        return Damage(way, file, other=chance.choice(alike))
    if way == "foreign" and theirs:
        return Damage(way, file, other=str(chance.choice(theirs)))
    if way == "remove":
        return Damage(way, file)
    at = chance.randrange(max(size, 1))
    if way == "cut":
        return Damage(way, file, at)
    if way == "zero":
        return Damage(way, file, at, count=chance.randint(1, max(1, min(size - at, chance.choice((4, 64, 4096))))))
    return Damage("flip", file, at, bit=chance.randrange(8))


def apply(damage: Damage, folder: Path) -> None:
    """Damage the file."""
    path = folder / damage.file
    content = bytearray(path.read_bytes())
    if damage.way == "swap":
        other = folder / damage.other
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif damage.way == "foreign":
        shutil.copyfile(damage.other, path)
    elif damage.way == "remove":
        path.unlink()
    else:
        if damage.way == "cut":
            content = content[: damage.at]
        elif damage.way == "zero":
            content[damage.at : damage.at + damage.count] = bytes(min(damage.count, len(content) - damage.at))
        elif content:
            content[damage.at] ^= 1 << damage.bit
        path.write_bytes(content)


def mend(damage: Damage, folder: Path, whole: Path) -> None:
    """Put the files back from an undamaged copy."""
    for name in filter(None, (damage.file, damage.other if damage.way == "swap" else "")):
        shutil.copyfile(whole / name, folder / name)


def files_of(folder: Path, but_for: tuple[str, ...] = ()) -> list[str]:
    """Return the names of all files in a folder, in order."""
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return [name for name in names if name not in but_for]
