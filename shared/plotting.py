"""Plots need matplotlib, which is an extra."""

from typing import Any

from shared.errors import UsageError


def figure_type() -> Any:
    """Return matplotlib's class of figures. Raises UsageError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UsageError("plots need matplotlib: pip install 'lectern[plot]'.") from None
    return Figure
