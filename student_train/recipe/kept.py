"""The recipe that a run keeps in its output folder as recipe.json: whose folder is it, and is it the same recipe?"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.errors import RecipeError, UsageError
from shared.parsing import parse_json
from shared.storage.files import TEMPORARY, check_folder
from student_train.recipe.recipe import Recipe

RECIPE = "recipe.json"
# A run writes recipe.json before anything else, and every version has written these keys.
_KEYS_OF_A_RECIPE = {"output", "student", "training"}
_DIFFERENCES_TOLD = 3


def recipe_json(recipe: Recipe) -> str:
    """Return the content of recipe.json."""
    return recipe.model_dump_json(indent=2, by_alias=True) + "\n"


def recipe_of(folder: Path) -> Recipe | None:
    """Return the recipe in a model's folder; None if there is none, or this version cannot read it."""
    try:
        return Recipe.model_validate_json((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError, RecursionError):
        return None


def check_output(recipe: Recipe) -> None:
    """Check that a run may write to its output folder: an empty or missing one, or one that a run has begun to fill.

    Raises:
        UsageError: if it holds other files, is a file, or is the recipe's dump or lies in it. Nothing is written.
    """
    output = recipe.output
    check_folder(output, "output =")
    for dump in (recipe.dump, recipe.eval.dump if recipe.eval else None):
        place = dump.local.resolve() if dump is not None and dump.local is not None else None
        if place is not None and place in (output.resolve(), *output.resolve().parents):
            raise UsageError(f"output = {str(output)!r}: this is the dump {dump} or lies in it; choose another folder.")
    if holds_a_run(output) or not output.exists():
        return
    # A run that was killed while it wrote its recipe leaves the beginning of it.
    strangers = sorted(path.name for path in output.iterdir() if path.name != f"{RECIPE}{TEMPORARY}")
    if strangers:
        raise UsageError(
            f"output = {str(output)!r}: holds other files already ({', '.join(strangers[:3])}); choose an empty folder."
        )


def check_same_recipe(recipe: Recipe, where: str, advice: str, *, but_for: frozenset[str] = frozenset()) -> None:
    """Compare a recipe with the one in its output folder, but for some keys.

    Args:
        where: what the message calls the student or the run that is there.
        advice: how the message ends.

    Raises:
        RecipeError: if they differ, with the keys that do.
    """
    found = recipe_of(recipe.output)
    then = flat(found.model_dump(mode="json", exclude=set(but_for))) if found is not None else {}
    now = flat(recipe.model_dump(mode="json", exclude=set(but_for)))
    changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if changed:
        told = [f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in changed[:_DIFFERENCES_TOLD]]
        difference = ", ".join(told) if found is not None else f"its {RECIPE} cannot be read as one"
        raise RecipeError(f"{recipe.output}: {where} has another recipe ({difference}); {advice}.")


def flat(content: Any, key: str = "") -> dict[str, Any]:
    """Flatten nested tables and lists into one table with dotted keys, as in `--set`.

    >>> flat({"loss": [{"kind": "kl"}]})
    {'loss.0.kind': 'kl'}
    """
    if isinstance(content, dict):
        entries = [(str(name), entry) for name, entry in content.items()]
    elif isinstance(content, list):
        entries = [(str(index), entry) for index, entry in enumerate(content)]
    else:
        return {key: content}
    flattened: dict[str, Any] = {}
    for name, entry in entries:
        flattened |= flat(entry, f"{key}.{name}" if key else name)
    return flattened


def holds_a_run(output: Path) -> bool:
    """Whether a folder holds a recipe.json that a run of any version has written."""
    try:
        content = parse_json((output / RECIPE).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() >= _KEYS_OF_A_RECIPE
