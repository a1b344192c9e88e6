"""Whole numbers in byte planes: a column for the lowest byte of all of a position's entries, one for the next, ...

Where every position has the same number of entries, each plane is one fixed-size binary a position. A reader then needs
no list inside a list, whose levels Parquet keeps for every single entry: a row group of 2 MB is read in half the time,
and takes as many bytes as with Parquet's own byte planes (`just bench-train`).

Shapes: N positions, K entries of each, E = N K.
"""

from collections.abc import Mapping, Sequence

import polars as pl
import torch
from torch import Tensor

from shared.dump.codecs.columns import Column


def plane_columns(name: str, below: int, width: int) -> tuple[Column, ...]:
    """The columns that hold `width` numbers of 0 to `below` - 1 a position, the lowest byte first."""
    planes = max(1, -(-(below - 1).bit_length() // 8))
    return tuple(Column(f"{name}_{plane}", "uint8", width) for plane in range(planes))


def split(entries_E: Tensor, columns: Sequence[Column]) -> dict[str, Tensor]:
    """All positions' numbers, one after the other -> uint8 [N, K] a plane ([N] where K is 1)."""
    entries_NK = entries_E.view(-1, columns[0].width or 1)
    planes = ((column, (entries_NK >> 8 * plane & 255).to(torch.uint8)) for plane, column in enumerate(columns))
    return {column.name: plane_NK if column.width != 1 else plane_NK.squeeze(-1) for column, plane_NK in planes}


def join(planes: Mapping[str, Tensor], columns: Sequence[Column], dtype: torch.dtype) -> Tensor:
    """The numbers back, [N, K] of a type that holds them."""
    lowest, *higher = (planes[column.name].reshape(-1, column.width or 1) for column in columns)
    entries_NK = lowest.to(dtype)
    for plane, plane_NK in enumerate(higher, 1):
        entries_NK |= plane_NK.to(dtype) << 8 * plane
    return entries_NK


def join_expr(columns: Sequence[Column]) -> pl.Expr:
    """list[i64] a position: the numbers."""
    lowest, *higher = (column.list_expr().cast(pl.List(pl.Int64)) for column in columns)
    return sum((plane * 256**number for number, plane in enumerate(higher, 1)), lowest)
