"""The layout with distributions of the next token at the positions in the column `positions`.

The gold label is the next token itself, so it is not stored.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl

from shared.dump.layouts.base import Field, Layout, Places
from shared.dump.layouts.listed import POSITIONS, check_positions, packed_positions
from shared.dump.rowgroup import Flat, Int32, Offsets, RowGroup


class ListedNextToken(Layout):
    """One distribution of the next token for each listed token."""

    name = "listed-next-token"
    place = "one for each of `positions`: the distribution after token t is that of token t + 1"
    gold_title = "next"

    def fields(self, labelled: bool) -> tuple[Field, ...]:
        return (POSITIONS,)

    def pack(self, group: RowGroup, labelled: bool) -> dict[str, Flat]:
        return packed_positions(group)

    def unpack(self, columns: Mapping[str, Flat], labelled: bool, token_offsets: Offsets, input_ids: Int32) -> Places:
        offsets, positions = columns["positions"].list_offsets(), columns["positions"].numbers()
        firsts = np.repeat(token_offsets[:-1], np.diff(offsets))
        return Places(offsets, positions, input_ids[firsts + positions + 1])

    def check(self, columns: Mapping[str, Flat], token_offsets: Offsets | None, classes: int) -> Offsets | None:
        return check_positions(columns, token_offsets, after=1)

    def per_position(self, labelled: bool) -> dict[str, pl.Expr]:
        ids, positions = pl.col("input_ids"), pl.col("positions")
        return {
            "position": positions,
            "token_id": ids.list.gather(positions),
            "label": ids.list.gather(positions + 1),
        }
