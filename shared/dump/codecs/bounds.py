"""Bounds of the values in columns. Checksums show that a file is as it was written, but not that it makes sense: a dump
of unknown origin can hold anything.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# The bits of a float16 without its sign; from this number on, they are infinity or NaN.
_MAGNITUDE, _INFINITE = 0x7FFF, 0x7C00


def require_within(name: str, values: NDArray[Any], lowest: float, highest: float) -> None:
    """Raise ValueError if a value of column `name` is below `lowest` or above `highest`, or NaN."""
    if not values.size:
        return
    smallest, largest = values.min(), values.max()
    if not (smallest >= lowest and largest <= highest):
        bad = smallest if not smallest >= lowest else largest
        raise ValueError(f"column {name!r} holds {bad}, but its values are from {lowest:,} to {highest:,}")


def require_finite(name: str, values: NDArray[Any]) -> None:
    """Raise ValueError if a floating-point value of column `name` is NaN or infinite."""
    if values.dtype == np.float16:  # as integers, because numpy takes ten times as long for them as numbers
        is_broken = values.size > 0 and (values.view(np.uint16) & _MAGNITUDE).max() >= _INFINITE
    else:
        is_broken = values.size > 0 and not np.isfinite([values.min(), values.max()]).all()
    if is_broken:
        raise ValueError(f"column {name!r} holds NaN or infinity")
