"""Gold labels: from names and numbers in a file to indices into the ordered list of label names."""

from collections.abc import Iterable

from shared.dump.rowgroup import MISSING
from shared.errors import CorpusError
from shared.text.examples import Label


def label_index(value: Label, names: tuple[str, ...]) -> int:
    """The index of a label, given by its name or its number; MISSING (-100) for a missing label.

    >>> label_index("sports", ("world", "sports")), label_index("0", ("world", "sports")), label_index(None, ("world",))
    (1, 0, -100)
    >>> label_index("1", ("1", "2", "3"))
    0

    Raises:
        CorpusError: for a label outside the set, naming the set.
    """
    if value is None:
        return MISSING
    if value in names:
        return names.index(value)
    if not value.isdecimal():
        raise CorpusError(f"label {value!r} is not one of the {len(names)} labels: {', '.join(names)}.")
    if int(value) >= len(names):
        raise CorpusError(
            f"label {value} is outside the {len(names)} labels (0 to {len(names) - 1}): {', '.join(names)}."
        )
    return int(value)


def names_from_values(values: Iterable[str]) -> tuple[str, ...]:
    """Label names for a corpus without a list of them: the sorted names, or "0" to the largest number."""
    found = set(values)
    if all(value.isdecimal() for value in found):
        return tuple(str(number) for number in range(max((int(value) for value in found), default=-1) + 1))
    return tuple(sorted(found))
