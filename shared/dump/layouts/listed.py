"""The layout with distributions at the positions in the column `positions`, and their gold labels in `labels`."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from shared.dump.layouts.base import Field, Layout, Places
from shared.dump.rowgroup import MISSING, Flat, Int32, Offsets, RowGroup, check_lengths

POSITIONS = Field("positions", "int32", "indices into input_ids at which a distribution is recorded")
LABELS = Field("labels", "int32", "gold label at each of `positions`, or null", holds_gold=True)


class Listed(Layout):
    """One distribution for each listed token."""

    name = "listed"
    place = "one for each of `positions`"

    def fields(self, labelled: bool) -> tuple[Field, ...]:
        return (POSITIONS, LABELS) if labelled else (POSITIONS,)

    def pack(self, group: RowGroup, labelled: bool) -> dict[str, Flat]:
        return packed_positions(group) | (packed_labels(group) if labelled else {})

    def unpack(self, columns: Mapping[str, Flat], labelled: bool, token_offsets: Offsets, input_ids: Int32) -> Places:
        return unpacked_lists(columns, labelled)

    def per_position(self, labelled: bool) -> dict[str, pl.Expr]:
        positions = pl.col("positions")
        found = {"position": positions, "token_id": pl.col("input_ids").list.gather(positions)}
        return found | ({"label": pl.col("labels")} if labelled else {})


def packed_positions(group: RowGroup) -> dict[str, Flat]:
    """Return the column `positions` of a row group."""
    return {POSITIONS.name: Flat(group.positions, group.position_offsets)}


def packed_labels(group: RowGroup) -> dict[str, Flat]:
    """Return the column `labels` of a row group, with one gold label for each position."""
    return {LABELS.name: Flat(group.labels, group.position_offsets)}


def unpacked_lists(columns: Mapping[str, Flat], labelled: bool) -> Places:
    """Return positions and gold labels from both columns. Raises ValueError if the lengths of their lists differ."""
    offsets, positions = columns[POSITIONS.name].list_offsets(), columns[POSITIONS.name].numbers()
    if not labelled:
        return Places(offsets, positions, np.full(len(positions), MISSING, np.int32))
    check_lengths(LABELS.name, columns, offsets)
    return Places(offsets, positions, columns[LABELS.name].numbers())
