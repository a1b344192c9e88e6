"""Damaged output folders of runs: what `--resume`, `eval` and `export` make of them.

Weights and states of optimizers are signed by nothing, so that other bits in them are other numbers (counted as
`unsigned`); every other damage is found or changes nothing, and nothing ends in a traceback.
"""

import json
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from tests.campaign.attempts import Journal, Outcome
from tests.campaign.commands import Command, Ended, copied, run
from tests.campaign.damage import any_damage, apply, files_of
from tests.campaign.flips import make_dumps
from tests.campaign.runner import chance_of

OUT = "out"
BEGUN = ("plain", "scored", "staged")
FINISHED = ("plain", "vocabulary")
# Bytes that nothing signs: other weights, settings or tokens are another model.
UNSIGNED = (".safetensors", ".pt", ".pth", ".bin", ".json", ".jinja")


class RunFlips:
    """Flipped bits and worse in what runs leave."""

    name, goal, batch, silent_cpu_seconds = "run-flips", 400, 10, 60.0

    def prepare(self, place: Path) -> None:
        """Make finished runs, and unfinished ones that were killed after some checkpoints."""
        make_dumps(place)
        for name in {*FINISHED, *BEGUN}:
            folder = copied(place / "material", place / "finished" / name)
            ended = run(("distill", "run", f"{name}.toml"), folder, place / "logs" / f"finished-{name}")
            if ended.code:
                raise RuntimeError(f"code {ended.code}, hung {ended.is_hung}: {ended.output}{ended.errors}")
        for name in BEGUN:
            _begin(place, name)

    def attack(self, place: Path, work: Path, seed: int, numbers: Sequence[int], journal: Journal) -> None:
        """Damage one file, and run the commands that read it."""
        for number in numbers:
            chance = chance_of(seed, self.name, number)
            is_begun = chance.random() < 0.6
            name = chance.choice(BEGUN if is_begun else FINISHED)
            source = place / ("begun" if is_begun else "finished")
            folder = copied(source / name, work / "place")
            strangers = [source / other / OUT for other in (BEGUN if is_begun else FINISHED) if other != name]
            damage = any_damage(chance, folder / OUT, files_of(folder / OUT, ("README.md",)), strangers)
            apply(damage, folder / OUT)
            commands = [("distill", "run", f"{name}.toml", "--resume")]
            if not is_begun:
                data = "labelled.jsonl" if name == "plain" else "texts.txt"
                commands.append(("distill", "eval", OUT, "--data", data))
                if chance.random() < 0.2:
                    commands.append(("distill", "export", OUT, "--out", "model.onnx"))
            journal.begin(number, f"{'begun' if is_begun else 'finished'} run {name}: {damage}; {commands[-1][1]}")
            outcomes = [
                _outcome(run(words, folder, work / "log"), folder / OUT, place / "finished" / name / OUT, damage.file)
                for words in commands
            ]
            order = [Outcome.BAD, Outcome.SILENT, Outcome.FOUND, Outcome.UNSIGNED, Outcome.HARMLESS]
            journal.end(*min(outcomes, key=lambda outcome: order.index(outcome[0])))
            shutil.rmtree(folder)


def _begin(place: Path, name: str) -> None:
    """Run a recipe until there are files to damage, and kill it: for the staged one, those of its last stage."""
    folder = copied(place / "material", place / "begun" / name)
    running = Command(("distill", "run", f"{name}.toml"), folder, place / "logs" / f"begun-{name}")
    awaited = "second.*/checkpoint-*/trainer_state.json" if name == "staged" else "*/checkpoint-6/trainer_state.json"
    while not any(map(_is_whole, (folder / OUT / "checkpoints").glob(awaited))):
        if running.ended() is not None:
            raise RuntimeError(f"{name} had ended before it was killed")
        time.sleep(0.0005)
    running.send(signal.SIGKILL)
    running.wait()


def _is_whole(state: Path) -> bool:
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


def _outcome(ended: Ended, out: Path, reference: Path, file: str) -> tuple[Outcome, str]:
    words = " ".join(ended.errors.split())[-300:]
    if ended.fault:
        return Outcome.BAD, ended.fault
    if ended.code not in (0, 1, 2) or (ended.code and ended.paragraph is None):
        return Outcome.BAD, f"ended with {ended.code}: {words}"
    if ended.code:
        return Outcome.FOUND, words
    student = out / "model.safetensors"
    if not student.exists():
        return Outcome.BAD, "ended with 0 and left no student"
    if student.read_bytes() == (reference / "model.safetensors").read_bytes():
        return Outcome.HARMLESS, ""
    return (Outcome.UNSIGNED if file.endswith(UNSIGNED) else Outcome.SILENT), "other weights"
