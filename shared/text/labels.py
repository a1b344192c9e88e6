"""Gold labels: names and numbers of a file -> indices into the one ordered list of label names."""

from collections.abc import Iterable

from shared.errors import CorpusError
from shared.text.corpus import Label

# What torch's cross-entropy ignores; the dump stores a null in its place.
MISSING = -100


def label_index(value: Label, names: tuple[str, ...]) -> int:
    """The index of a label given by name or by number; MISSING (-100) for a missing one.

    Raises:
        CorpusError: for a label outside the set, naming the set.
    """
    if value is None:
        return MISSING
    if isinstance(value, str):
        if value in names:
            return names.index(value)
        if not value.isdecimal():
            raise CorpusError(f"label {value!r} is not one of the {len(names)} labels: {', '.join(names)}.")
    index = int(value)
    if not 0 <= index < len(names):
        raise CorpusError(
            f"label {value!r} is outside the {len(names)} labels (0 to {len(names) - 1}): {', '.join(names)}."
        )
    return index


def names_from_values(values: Iterable[str | int]) -> tuple[str, ...]:
    """Label names for a corpus that comes without a list of them: its names sorted, or "0" to the largest number."""
    found = set(values)
    if all(isinstance(value, int) or value.isdecimal() for value in found):
        return tuple(str(number) for number in range(max((int(value) for value in found), default=-1) + 1))
    return tuple(sorted(str(value) for value in found))
