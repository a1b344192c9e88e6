"""Which tags may follow each other, read from their names: IOB2 ("B-PER", "I-PER", "O"), IOBES and BILOU.

Shapes: C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OUTSIDE = "O"
# A scheme's prefixes, with those of BILOU by their names in IOBES: last = end, unit = single.
_RENAMED = {"BILU": {"L": "E", "U": "S"}, "BIES": {}, "BI": {}}
_NO_TYPE = ""


@dataclass(frozen=True, eq=False)
class Legality:
    """Which transitions keep to a scheme.

    Attributes:
        between_CC: bool, whether a tag [from] may be followed by another one [to].
        first_C, last_C: bool, whether a row's tags may begin and end with a tag.
    """

    between_CC: NDArray[np.bool_]
    first_C: NDArray[np.bool_]
    last_C: NDArray[np.bool_]


def legality_of(names: Sequence[str]) -> Legality | None:
    """Return which transitions are legal for tags with these names; None if the names follow no scheme.

    They follow one if one of them is "O", all others have one of its prefixes, and each entity that a tag continues
    can also begin, and end. Names of IOB1, where "I-" may begin an entity, are those of IOB2 and are read as such if
    each type has a "B-"; otherwise they follow none.

    Example:
        >>> legality_of(["O", "B-X", "I-X"]).between_CC.tolist()  # "I-X" does not follow "O"
        [[True, True, False], [True, True, True], [True, True, True]]
        >>> legality_of(["NOUN", "VERB"]) is None
        True
    """
    tags = [_parted(name) for name in names]
    used = {prefix for prefix, _ in tags if prefix != OUTSIDE}
    scheme = next((scheme for scheme in ("BI", "BIES", "BILU") if used <= set(scheme)), None)
    if scheme is None or "B" not in used or OUTSIDE not in names:
        return None
    tags = [(_RENAMED[scheme].get(prefix, prefix), kind) for prefix, kind in tags]
    marks_ends = scheme != "BI"
    if not _all_begin_and_end(set(tags), marks_ends):
        return None
    is_open = np.asarray([prefix in "BI" for prefix, _ in tags])
    continues = np.asarray([prefix in "IE" for prefix, _ in tags])
    kinds = np.asarray([kind for _, kind in tags])
    goes_on_CC = is_open[:, None] & continues & (kinds[:, None] == kinds)
    if marks_ends:
        return Legality(goes_on_CC | (~is_open[:, None] & ~continues), ~continues, ~is_open)
    return Legality(goes_on_CC | ~continues[None], ~continues, np.ones(len(tags), np.bool_))


def _parted(name: str) -> tuple[str, str]:
    """(prefix, type) of a tag: "B-PER" -> ("B", "PER"), "O" -> ("O", ""); the whole name if it has no prefix."""
    prefix, _, kind = name.partition("-")
    return prefix, kind or _NO_TYPE


def _all_begin_and_end(tags: set[tuple[str, str]], marks_ends: bool) -> bool:
    """Whether each type with a tag that continues an entity has one that begins it, and one that ends it."""
    continued = {kind for prefix, kind in tags if prefix in "IE"}
    begun = {kind for prefix, kind in tags if prefix == "B"}
    ended = {kind for prefix, kind in tags if prefix == "E"}
    return continued <= begun and (not marks_ends or begun <= ended)
