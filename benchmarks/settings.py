"""How much a benchmark measures, and where it writes.

By default as much as its figures need; with QUICK=1 less, within two minutes; with TINY=1 as little as shows that the
benchmark still runs (the tests do this), with figures that mean nothing.
"""

import os
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

TINY = os.environ.get("TINY") == "1"
QUICK = TINY or os.environ.get("QUICK") == "1"
OUT = Path(os.environ.get("BENCHMARKS_OUT") or Path(__file__).parent / "out")


def sized(full: T, quick: T, tiny: T) -> T:
    """Return the value for this run."""
    return tiny if TINY else quick if QUICK else full
