"""The rows that a run learns from, kept in its checkpoints as source.json: it is resumed with the same ones only."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.errors import RecipeError
from shared.parsing import parse_json
from shared.storage.files import write_text_atomically

SOURCE = "source.json"


@dataclass(frozen=True)
class Rows:
    """What a run learns from: the name of the dump or the files, and the fingerprint of what they hold."""

    name: str
    fingerprint: str


def check_same_rows(checkpoints: Path, rows: Rows) -> None:
    """Check that an unfinished run has learned from these rows so far.

    A run that an older version has begun did not keep them, and goes on without this check.

    Raises:
        RecipeError: if the dump or the files are others than the run began with.
    """
    path = checkpoints / SOURCE
    if not path.exists():
        return
    try:
        kept = parse_json(path.read_bytes())["fingerprint"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RecipeError(
            f"{path}: not the fingerprint of a run's rows ({error}); delete {checkpoints.parent} to begin the run anew."
        ) from None
    if kept != rows.fingerprint:
        raise RecipeError(
            f"{rows.name}: not what the unfinished run in {checkpoints.parent} began with (the fingerprint was {kept} "
            f"and is {rows.fingerprint}); put the old dump or files back, or choose another output."
        )


def keep_rows(checkpoints: Path, rows: Rows) -> None:
    """Keep for `check_same_rows` which rows the run learns from."""
    checkpoints.mkdir(exist_ok=True)
    write_text_atomically(checkpoints / SOURCE, json.dumps(asdict(rows), indent=2) + "\n")
