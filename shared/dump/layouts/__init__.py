"""Layouts: where in a row distributions and gold labels are. `LAYOUTS` is the table of them."""

from shared.dump.layouts.base import BatchIndex, Field, Layout, Places
from shared.dump.layouts.frames import Recorded
from shared.dump.layouts.table import LAYOUTS

__all__ = ["LAYOUTS", "BatchIndex", "Field", "Layout", "Places", "Recorded"]
