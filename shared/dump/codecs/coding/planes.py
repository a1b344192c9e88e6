"""Integers in byte planes: one column for the lowest bytes of a position's entries, one for the next bytes, and so on.

If every position has the same number of entries, each plane is one fixed-size binary per position. This avoids lists in
lists, for which Parquet stores levels for every single entry: a row group of 2 MB is read in half the time, and takes
as many bytes as with Parquet's own byte planes (`just bench-train`).

Shapes: N positions, K entries per position, E = N K.
"""

from collections.abc import Mapping, Sequence

import polars as pl
import torch
from torch import Tensor

from shared.dump.codecs.columns import Column


def plane_columns(name: str, below: int, width: int) -> tuple[Column, ...]:
    """Return the columns for `width` integers from 0 to `below` - 1 per position, the lowest byte first."""
    planes = max(1, -(-(below - 1).bit_length() // 8))
    return tuple(Column(f"{name}_{plane}", "uint8", width) for plane in range(planes))


def split(entries_E: Tensor, columns: Sequence[Column]) -> dict[str, Tensor]:
    """Split the integers of all positions, one position after the other, into planes: uint8 [N, K] ([N] if K is 1)."""
    entries_NK = entries_E.view(-1, columns[0].width or 1)
    planes = ((column, (entries_NK >> 8 * plane & 255).to(torch.uint8)) for plane, column in enumerate(columns))
    return {column.name: plane_NK if column.width != 1 else plane_NK.squeeze(-1) for column, plane_NK in planes}


def join(planes: Mapping[str, Tensor], columns: Sequence[Column], dtype: torch.dtype) -> Tensor:
    """Return the integers [N, K] that `split` has split, as the integer type `dtype`, which must be wide enough."""
    lowest, *higher = (planes[column.name].reshape(-1, column.width or 1) for column in columns)
    entries_NK = lowest.to(dtype)
    for plane, plane_NK in enumerate(higher, 1):
        entries_NK |= plane_NK.to(dtype) << 8 * plane
    return entries_NK


def join_expr(columns: Sequence[Column]) -> pl.Expr:
    """list[i64] per position: the integers."""
    lowest, *higher = (column.list_expr().cast(pl.List(pl.Int64)) for column in columns)
    return sum((plane * 256**number for number, plane in enumerate(higher, 1)), lowest)
