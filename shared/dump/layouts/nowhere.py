"""The layout of dumps that record only vectors: no distributions and no gold labels."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from shared.dump.layouts.base import Field, Layout, Places
from shared.dump.rowgroup import Flat, Int32, Offsets, RowGroup


class Nowhere(Layout):
    """No distributions."""

    name = "none"
    place = "nowhere"
    has_distributions = False

    def fields(self, labelled: bool) -> tuple[Field, ...]:
        return ()

    def pack(self, group: RowGroup, labelled: bool) -> dict[str, Flat]:
        return {}

    def unpack(self, columns: Mapping[str, Flat], labelled: bool, token_offsets: Offsets, input_ids: Int32) -> Places:
        return Places(np.zeros(len(token_offsets), np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32))

    def per_position(self, labelled: bool) -> dict[str, pl.Expr]:
        return {}
