"""The layout with distributions at the positions in the column `positions`, and their gold labels in `labels`."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from shared.dump.layouts.base import Field, Layout, Places
from shared.dump.rowgroup import MISSING, Flat, Int32, Offsets, RowGroup, check_labels, check_lengths

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

    def check(self, columns: Mapping[str, Flat], token_offsets: Offsets | None, classes: int) -> Offsets | None:
        check_labels(LABELS.name, columns, classes - 1)
        return check_positions(columns, token_offsets)

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


def check_positions(columns: Mapping[str, Flat], token_offsets: Offsets | None, after: int = 0) -> Offsets | None:
    """Check that the positions of each row increase and have at least `after` tokens after them. Return their offsets
    if they were read.

    Raises:
        ValueError: if they do not.
    """
    if POSITIONS.name not in columns:
        return columns[LABELS.name].list_offsets() if LABELS.name in columns else None
    offsets, positions = columns[POSITIONS.name].list_offsets(), columns[POSITIONS.name].numbers()
    is_first = np.zeros(len(positions) + 1, np.bool_)
    is_first[offsets] = True
    rises = np.diff(positions, prepend=-1) > 0
    if not (rises | is_first[:-1]).all():
        raise ValueError(f"column {POSITIONS.name!r} holds positions that do not increase within their row")
    has_any = np.diff(offsets) > 0
    firsts, lasts = positions[offsets[:-1][has_any]], positions[offsets[1:][has_any] - 1]
    if (firsts < 0).any():
        raise ValueError(f"column {POSITIONS.name!r} holds {firsts.min()}, but positions count from 0")
    if token_offsets is not None and len(token_offsets) == len(offsets):
        beyond = lasts + after >= np.diff(token_offsets)[has_any]
        if beyond.any():
            raise ValueError(f"column {POSITIONS.name!r} holds {lasts[beyond][0]}, which is beyond its row's tokens")
    if LABELS.name in columns:
        check_lengths(LABELS.name, columns, offsets)
    return offsets
