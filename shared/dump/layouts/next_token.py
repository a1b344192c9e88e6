"""The layout with distributions of the next token at every position except the last.

The gold label is the next token itself. No columns are added, because positions and labels follow from the tokens.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl

from shared.dump.layouts.base import Field, Layout, Places
from shared.dump.rowgroup import Flat, Int32, Offsets, RowGroup


class NextToken(Layout):
    """One distribution of the next token for each token except the last."""

    name = "next-token"
    place = "one for each token but the last: the distribution after token t is that of token t + 1"
    gold_title = "next"

    def fields(self, labelled: bool) -> tuple[Field, ...]:
        return ()

    def pack(self, group: RowGroup, labelled: bool) -> dict[str, Flat]:
        return {}

    def unpack(self, columns: Mapping[str, Flat], labelled: bool, token_offsets: Offsets, input_ids: Int32) -> Places:
        lengths = np.maximum(np.diff(token_offsets) - 1, 0)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Places(offsets, within.astype(np.int32), input_ids[np.repeat(token_offsets[:-1], lengths) + within + 1])

    def check(self, columns: Mapping[str, Flat], token_offsets: Offsets | None, classes: int) -> Offsets | None:
        if token_offsets is None:
            return None
        return np.concatenate([[0], np.cumsum(np.maximum(np.diff(token_offsets) - 1, 0))])

    def per_position(self, labelled: bool) -> dict[str, pl.Expr]:
        ids = pl.col("input_ids")
        before_last = (ids.list.len().cast(pl.Int64) - 1).clip(0)
        return {
            "position": pl.int_ranges(0, before_last, dtype=pl.Int32),
            "token_id": ids.list.head(before_last),
            "label": ids.list.tail(before_last),
        }
