"""Ids and their codes as entries: one whole number for each id that a position keeps.

An entry is `gap * 2 ** code_bits + code`. Ids rise within a position, and a gap is how many ids were skipped, so that a
set of ids costs about what there are sets to choose from, and no order is paid for. Where ids begin anew at a smaller
one, the gap goes round the end of the vocabulary, so that in every case
`ids = (running sum of (gap + 1) - 1) mod vocabulary`.

Shapes: N positions, K most that a position keeps, E entries of all positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional

from shared.dump.codecs.coding import planes
from shared.dump.codecs.columns import Column, counts_of
from shared.dump.codecs.selection.rule import owners_and_ranks

# Ids are smaller than this, which leaves room for their codes in an int64.
ID_LIMIT = 2**40


@dataclass(frozen=True)
class Ragged:
    """Where the entries of some positions are among them, where positions differ in how many they have.

    Attributes:
        owners_E: whose each entry is.
        width: the most that a position has.
        index_E: where each entry is in the flattened [N, width].
    """

    positions: int
    width: int
    owners_E: Tensor
    index_E: Tensor

    @classmethod
    def of(cls, counts_N: Tensor, owners_E: Tensor, ranks_E: Tensor) -> "Ragged":
        """Of positions with so many entries; each entry is the how manieth of its position."""
        # One at least, where there is no position at all: nothing can be said about the largest of none.
        width = int(counts_N.max()) if len(counts_N) else 1
        return cls(len(counts_N), width, owners_E, owners_E * width + ranks_E)


@dataclass(frozen=True)
class Arrangement:
    """How the values of entries lie: [N, K] where every position has as many, else [E]."""

    ragged: Ragged | None = None

    def of_entries(self, values_N: Tensor) -> Tensor:
        """What each position has, for each of its entries."""
        return values_N[:, None] if self.ragged is None else values_N.index_select(0, self.ragged.owners_E)

    def matrix(self, values: Tensor, filling: float) -> Tensor:
        """Values of entries -> [N, K], filled up where positions differ."""
        if self.ragged is None:
            return values
        shape = self.ragged.positions, self.ragged.width
        flat = torch.full((shape[0] * shape[1],), filling, dtype=values.dtype, device=values.device)
        return flat.scatter_(0, self.ragged.index_E, values).view(shape)


@dataclass(frozen=True)
class Entries:
    """How the entries of a vocabulary's ids are stored.

    Attributes:
        name: of the list column, and the head of the planes' names.
        fixed: how many ids every position keeps, where that is fixed.
        in_planes: whether they are stored in byte planes (see planes.py) in place of lists; for a fixed number alone.
    """

    name: str
    vocabulary: int
    code_bits: int
    fixed: int | None
    in_planes: bool

    @property
    def columns(self) -> tuple[Column, ...]:
        """The list of entries, or the planes."""
        return self._planes or (self.list_column,)

    @property
    def list_column(self) -> Column:
        """The column of lists, whether it is stored or not."""
        return Column(self.name, "int32" if self._below <= 2**31 else "int64", None)

    def pack(self, ids_E: Tensor, codes_E: Tensor, ranks_E: Tensor, counts_N: Tensor) -> dict[str, Tensor]:
        """Ids, one position after the other, and their codes -> the columns. `ranks_E`: the how manieth of its position
        each is."""
        ids_E = ids_E.to(self._wide)
        before_E = torch.where(ranks_E > 0, ids_E.roll(1), -1)
        gaps_E = ids_E - before_E - 1
        gaps_E = torch.where(gaps_E < 0, gaps_E + self.vocabulary, gaps_E)
        entries_E = (gaps_E << self.code_bits) | codes_E.to(self._wide)
        if self._planes:
            return planes.split(entries_E, self._planes)
        return {self.name: entries_E, counts_of(self.name): counts_N.int()}

    def unpack(self, columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Arrangement]:
        """(int64 ids, codes, where they are): [N, K] where the number is fixed, [E] elsewhere."""
        entries_E = planes.join(columns, self._planes, self._wide).flatten() if self._planes else columns[self.name]
        codes_E = entries_E & ((1 << self.code_bits) - 1)
        steps_E = (entries_E >> self.code_bits) + 1
        if self.fixed is not None:
            ids_NK = steps_E.view(-1, self.fixed).cumsum(1, dtype=torch.int64) - 1
            return ids_NK, codes_E.view(-1, self.fixed), Arrangement()
        counts_N = columns[counts_of(self.name)].long()
        owners_E, ranks_E = owners_and_ranks(counts_N)
        running_E = steps_E.cumsum(0, dtype=torch.int64)
        # What the running sum was before each position's first entry.
        before_N = functional.pad(running_E, (1, 0)).index_select(0, counts_N.cumsum(0) - counts_N)
        ids_E = (running_E - before_N.index_select(0, owners_E) - 1) % self.vocabulary
        return ids_E, codes_E, Arrangement(Ragged.of(counts_N, owners_E, ranks_E))

    def keys_expr(self) -> pl.Expr:
        """list[i64] a position: code * 2 ** 40 + (2 ** 40 - 1 - id)."""
        entry, factor = pl.element().cast(pl.Int64), 2**self.code_bits
        ids = ((entry // factor + 1).cum_sum() - 1) % self.vocabulary
        entries = planes.join_expr(self._planes) if self._planes else self.list_column.expr()
        return entries.list.eval(entry % factor * ID_LIMIT + (ID_LIMIT - 1) - ids)

    def explain(self) -> list[str]:
        """How to read ids and codes without Lectern."""
        factor = 2**self.code_bits
        joined = (
            f"The entries of a position are `{self.name}_0 + 256 * {self.name}_1 + 65536 * {self.name}_2`, and so on "
            "over all of these columns."
        )
        taken_apart = (
            f"An entry of `{self.name}` is one id: `entry // {factor}` ids were skipped since the one before it, so "
            f"that ids are `(running sum of (entry // {factor} + 1) - 1) % {self.vocabulary}`, and "
            f"`entry % {factor}` is its code."
        )
        return [joined, taken_apart] if self._planes else [taken_apart]

    @property
    def _below(self) -> int:
        """What every entry is smaller than."""
        return self.vocabulary << self.code_bits

    @property
    def _wide(self) -> torch.dtype:
        return torch.int32 if self.list_column.dtype == "int32" else torch.int64

    @property
    def _planes(self) -> tuple[Column, ...]:
        """The columns in place of the lists, if any."""
        if not self.in_planes or self.fixed is None:
            return ()
        return planes.plane_columns(self.name, self._below, self.fixed)
