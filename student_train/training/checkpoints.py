"""Checkpoints of the Trainer that can be trusted: what a stage is resumed from is what was written.

    checkpoint-N/...               the Trainer's own files, trainer_state.json last
    checkpoint-N/checksums.json    the SHA-256 of each of them, written after the last one

A checkpoint whose files are not as they were written is told and removed, and the one before it is used.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from shared.errors import TrainingError
from shared.parsing import parse_json
from shared.storage import Folder, sha256_of
from shared.storage.files import write_text_atomically

CHECKSUMS = "checksums.json"
_UNFINISHED = "it was never finished"
# What torch's RuntimeErrors say when a file cannot be written; others have nothing to do with files.
_OF_WRITING = re.compile(r"PytorchStreamWriter|unexpected pos|write failed|iostream|No space left|open file|directory")
RESUME_ADVICE = "make room, then go on with --resume: what was saved before is kept."


def checkpoints_of(folder: Path) -> list[Path]:
    """Return the checkpoints in a stage's folder, in the order of their steps."""
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if step_of(path) is not None]
    return sorted(found, key=lambda path: step_of(path) or 0)


def step_of(checkpoint: Path) -> int | None:
    """Return the number of steps before a checkpoint; None if its name is not that of a checkpoint."""
    number = checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(number) if number.isdecimal() and len(number) < 20 else None


def last_usable(folder: Path) -> Path | None:
    """Return the last checkpoint of a stage that is as it was written, like the best one until then, whose weights the
    stage may end with; None if there is none.

    Checkpoints after it are removed: those that a killed run left incomplete, and damaged ones, which are told on
    stderr.
    """
    for checkpoint in reversed(checkpoints_of(folder)):
        problem = problem_of(checkpoint) or _problem_of_the_best(checkpoint)
        if problem is None:
            return checkpoint
        if problem != _UNFINISHED:
            print(
                f"{checkpoint}: damaged ({problem}); removed. The training goes on from what was saved before it.",
                file=sys.stderr,
            )
        shutil.rmtree(checkpoint)
    return None


def problem_of(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint; None if nothing is."""
    path = checkpoint / CHECKSUMS
    if not path.exists():
        return _UNFINISHED
    try:
        written = parse_json(path.read_bytes())
        now = _checksums(checkpoint)
    except (OSError, ValueError) as error:
        return f"its {CHECKSUMS} cannot be compared: {error}"
    changed = sorted(name for name in now.keys() | set(written) if dict(written).get(name) != now.get(name))
    return f"not as it was written: {', '.join(changed)}" if changed else None


def best_of(checkpoint: Path) -> Path | None:
    """Return the checkpoint that was the best one when this one was written; None if no step was better than the first
    weights, or nothing is scored."""
    step = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).best_global_step
    return checkpoint.with_name(f"{PREFIX_CHECKPOINT_DIR}-{step}") if step else None


def _problem_of_the_best(checkpoint: Path) -> str | None:
    best = best_of(checkpoint)
    if best is None or best == checkpoint:
        return None
    problem = problem_of(best)
    return f"{best.name}, the best one before it, is damaged: {problem}" if problem is not None else None


def sign(checkpoint: Path) -> None:
    """Write the checksums of a finished checkpoint."""
    write_text_atomically(checkpoint / CHECKSUMS, json.dumps(_checksums(checkpoint), indent=2) + "\n")


@contextmanager
def written(what: Path, advice: str) -> Iterator[None]:
    """Turn the errors of the libraries that write weights (mostly a full disk) into a sentence that ends with `advice`.

    Raises:
        TrainingError: if the block fails; what it has written so far is removed if it is a checkpoint.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _OF_WRITING.search(str(error)):
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".")
        if what.name.startswith(PREFIX_CHECKPOINT_DIR):
            shutil.rmtree(what, ignore_errors=True)
        raise TrainingError(f"{what}: cannot be written ({reason}); {advice}") from error


def _checksums(checkpoint: Path) -> dict[str, str]:
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return {path.relative_to(checkpoint).as_posix(): sha256_of(Folder.of(path)) for path in files}
