"""Names of labels in the metadata of Parquet files that the `datasets` library has written (its ClassLabel).

There, the labels themselves are numbers, and -1 is a missing one. Models have names for their numbers too, in an order
of their own. Where both have names, a label is what its name says, not its number.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shared.errors import CorpusError
from shared.parsing import NotParsed, parse_json

# Names that say nothing: those that transformers makes up, and numbers.
_NUMBERED = re.compile(r"(LABEL_)?[0-9]+")


def class_names(metadata: Mapping[bytes, bytes] | None, column: str | None) -> tuple[str, ...] | None:
    """Return the names of a column's labels, by their numbers; None if the metadata has none."""
    try:
        feature = parse_json((metadata or {})[b"huggingface"])["info"]["features"][column]
        while not (isinstance(feature, Mapping) and "names" in feature):
            # Of lists: {"feature": ..., "_type": "Sequence" or "List"}, or [...].
            feature = feature["feature"] if isinstance(feature, Mapping) else feature[0]
        names = feature["names"]
    except (KeyError, IndexError, TypeError, NotParsed):
        return None
    is_valid = isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_valid else None


def labels_by_name(file: str, names: Sequence[str], classes: Sequence[str]) -> Callable[[Any], Any]:
    """Return a function from a number (or a list of them) of a file to a label of a model with these `classes`.

    Numbers stay numbers if the model has no names, or has them in the same order, in capitals or not.

    Raises:
        CorpusError: if both have names, and none in common.
    """
    own, folded = [name.casefold() for name in classes], [name.casefold() for name in names]
    if not classes or all(map(_NUMBERED.fullmatch, classes)) or folded == own[: len(names)]:
        return lambda value: _each(value, lambda number: number)
    by_name = dict(zip(own, classes, strict=True)) | dict(zip(classes, classes, strict=True))
    found = [by_name.get(name, by_name.get(name.casefold())) for name in names]
    if not any(found):
        raise CorpusError(
            f"{file}: its labels are named {', '.join(names)}, the model's {', '.join(classes)}, and they have none in "
            "common; give the model's names as labels, or, if the numbers mean the same, write them without names (for "
            "instance as .jsonl)."
        )

    def named(number: int) -> str:
        if number >= len(names):
            raise CorpusError(f"{file}: label {number} has no name there; there are {len(names)}, from 0.")
        return found[number] or names[number]

    return lambda value: _each(value, named)


def _each(value: Any, change: Callable[[int], Any]) -> Any:
    if isinstance(value, list):
        return [_each(one, change) for one in value]
    if not isinstance(value, int):
        return value
    return None if value < 0 else change(value)
