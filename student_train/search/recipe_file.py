"""A recipe as a TOML file that people read and `distill run` takes."""

import re
from typing import Any

from student_train.recipe.recipe import Recipe
from student_train.sweep.names import toml


def recipe_toml(recipe: Recipe, comment: str = "") -> str:
    """Return the keys that a recipe gives as TOML: its own first, then a section for each table, with a comment above.

    >>> print(_written({"output": "out", "loss": [{"kind": "hidden", "map": [0, 5]}]}), end="")
    output = "out"
    <BLANKLINE>
    [[loss]]
    kind = "hidden"
    map = [0, 5]
    """
    content = recipe.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return "".join(f"# {line}\n" for line in comment.splitlines()) + _written(content)


def _written(content: dict[str, Any]) -> str:
    sections, own = [], []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            sections.append((f"[{_key(key)}]", value))
        elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            sections += [(f"[[{_key(key)}]]", entry) for entry in value]
        else:
            own.append((key, value))
    parts = [_lines(own), *(f"{head}\n{_lines(list(table.items()))}" for head, table in sections)]
    return "\n".join(part for part in parts if part)


def _lines(entries: list[tuple[str, Any]]) -> str:
    return "".join(f"{_key(key)} = {toml(value)}\n" for key, value in entries)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml(key)
