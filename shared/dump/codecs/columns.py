"""The Parquet columns of codecs.

A column holds, for each position, one number, one fixed-size binary of `width` numbers, or a list of any length. In
memory, a list column is two flat tensors: its values under the column's name, and the number of values of each position
under the name that `counts_of` gives.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field

_POLARS_TYPES = {
    "float32": pl.Float32,
    "float16": pl.Float16,
    "int64": pl.Int64,
    "int32": pl.Int32,
    "int8": pl.Int8,
    "uint16": pl.UInt16,
    "uint8": pl.UInt8,
}


# The width of vectors; the widest that models record have some 16,000 channels.
Width = Annotated[int, Field(ge=1, le=2**17)]


@dataclass(frozen=True)
class Column:
    """One Parquet column of a signal: its name, numpy type, and numbers per position (None: a list of any length)."""

    name: str
    dtype: str
    width: int | None = 1

    @property
    def is_list(self) -> bool:
        """Whether the number of values varies between positions."""
        return self.width is None

    @property
    def bytes_per_position(self) -> int:
        """Bytes per position before compression; for a list, the bytes of one value."""
        return np.dtype(self.dtype).itemsize * (1 if self.width is None else self.width)

    def expr(self) -> pl.Expr:
        """The exploded column (one value per position) as a number, an array of numbers, or a list of numbers."""
        raw, dtype = pl.col(self.name), _POLARS_TYPES[self.dtype]
        if self.is_list:
            return raw
        return raw.cast(dtype) if self.width == 1 else raw.bin.reinterpret(dtype=pl.Array(dtype, self.width))

    def list_expr(self) -> pl.Expr:
        """The same as `expr`, but always as a list."""
        if self.is_list:
            return self.expr()
        return self.expr().arr.to_list() if self.width != 1 else pl.concat_list(self.expr())


def counts_of(column: str) -> str:
    """Return the name under which the counts of a list column are kept in memory, beside its values."""
    return f"{column}#counts"
