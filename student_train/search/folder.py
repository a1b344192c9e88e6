"""The folder of a search: whose it is, and whether a search may go on in it.

OUTPUT/search.json     what all scores in the folder depend on
OUTPUT/recipe.toml     the recipe whose candidates these are
OUTPUT/evaluations/, runs/, logs/   see candidates.py
OUTPUT/best.toml, results.json, search.png   what was found
"""

import json
from pathlib import Path
from typing import Any

from shared.errors import UsageError
from shared.parsing import parse_json
from shared.storage.files import TEMPORARY, check_folder, write_text_atomically
from student_train.recipe.kept import flat

IDENTITY = "search.json"
_DIFFERENCES_TOLD = 3


def check_output(output: Path, identity: dict[str, Any], resume: bool) -> None:
    """Check that a search may write to its folder: an empty or missing one, or, with `resume`, one of the same search.

    Args:
        identity: what the scores of the candidates depend on; the number of generations, for instance, is not part of
            it, so that a finished search can be made longer.

    Raises:
        UsageError: if it holds other files, another search, or a search that `resume` was not given for. Nothing is
            written.
    """
    check_folder(output, "--out")
    if not output.exists():
        return
    kept = _kept(output)
    if kept is None:
        # A search that was killed while it wrote its identity leaves the beginning of it.
        strangers = sorted(path.name for path in output.iterdir() if path.name != f"{IDENTITY}{TEMPORARY}")
        if strangers:
            raise UsageError(
                f"--out {output}: holds other files already ({', '.join(strangers[:3])}); choose an empty folder."
            )
        return
    then, now = flat(kept), flat(identity)
    changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if changed:
        told = [f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in changed[:_DIFFERENCES_TOLD]]
        raise UsageError(
            f"--out {output}: another search is there ({', '.join(told)}), and its scores cannot be compared with "
            "these; choose another folder, or delete it."
        )
    if not resume:
        raise UsageError(
            f"--out {output}: this search has begun there already; add --resume to go on with it, or delete the folder."
        )


def keep_identity(output: Path, identity: dict[str, Any]) -> None:
    """Write what the scores of the search depend on; by it, the folder is known to be a search's."""
    write_text_atomically(output / IDENTITY, json.dumps(identity, indent=2) + "\n")


def _kept(output: Path) -> dict[str, Any] | None:
    try:
        content = parse_json((output / IDENTITY).read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and {"search", "recipe", "source"} <= content.keys() else None
