"""Ids and their codes as entries: one integer for each id that a position keeps.

An entry is `gap * 2 ** code_bits + code`. Ids are sorted within a position, and a gap is the number of ids skipped
since the previous one. So the bits of a position are close to the information in a set of ids, without that of their
order. If ids start again from a smaller one (sampled ids after exact ones), the gap wraps around the end of the
vocabulary, so always `ids = (running sum of (gap + 1) - 1) mod vocabulary`.

Shapes: N positions, K most ids of a position, E entries of all positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from shared.dump.codecs.bounds import require_within
from shared.dump.codecs.coding import planes
from shared.dump.codecs.columns import Column, counts_of
from shared.dump.codecs.selection.rule import owners_and_ranks

# All ids are smaller than this, which leaves bits for their codes in an int64.
ID_LIMIT = 2**40


@dataclass(frozen=True)
class Ragged:
    """The positions of entries, if the number of entries varies between positions.

    Attributes:
        positions: the number N of positions.
        width: the largest number of entries of a position.
        owners_E: the position of each entry.
        index_E: the index of each entry in a flattened matrix [N, width].
    """

    positions: int
    width: int
    owners_E: Tensor
    index_E: Tensor

    @classmethod
    def of(cls, counts_N: Tensor, owners_E: Tensor, ranks_E: Tensor) -> "Ragged":
        """Arrange the entries of positions with `counts_N` entries; `ranks_E` numbers the entries of each position."""
        # Without any position there is no maximum.
        width = int(counts_N.max()) if len(counts_N) else 1
        return cls(len(counts_N), width, owners_E, owners_E * width + ranks_E)


@dataclass(frozen=True)
class Arrangement:
    """The shape of values of entries: [N, K] if all positions have the same number of entries (`ragged` is None), else
    [E]."""

    ragged: Ragged | None = None

    def of_entries(self, values_N: Tensor) -> Tensor:
        """Repeat the value of each position for each of its entries (as [N, 1] if not ragged)."""
        return values_N[:, None] if self.ragged is None else values_N.index_select(0, self.ragged.owners_E)

    def matrix(self, values: Tensor, filling: float) -> Tensor:
        """Return values of entries as [N, K], padded with `filling` if ragged."""
        if self.ragged is None:
            return values
        shape = self.ragged.positions, self.ragged.width
        flat = torch.full((shape[0] * shape[1],), filling, dtype=values.dtype, device=values.device)
        return flat.scatter_(0, self.ragged.index_E, values).view(shape)


@dataclass(frozen=True)
class Entries:
    """The storage of entries.

    Attributes:
        name: name of the list column, and beginning of the names of the planes.
        vocabulary: number of ids.
        code_bits: number of bits of a code.
        fixed: number of entries of every position; None if it varies.
        in_planes: whether entries are stored in byte planes (see planes.py) instead of lists; only if `fixed` is given.
    """

    name: str
    vocabulary: int
    code_bits: int
    fixed: int | None
    in_planes: bool

    @property
    def columns(self) -> tuple[Column, ...]:
        """The column of lists, or the planes."""
        return self._planes or (self.list_column,)

    @property
    def list_column(self) -> Column:
        """The column of lists, whether or not planes are stored instead."""
        return Column(self.name, "int32" if self._below <= 2**31 else "int64", None)

    def pack(self, ids_E: Tensor, codes_E: Tensor, ranks_E: Tensor, counts_N: Tensor) -> dict[str, Tensor]:
        """Encode ids and codes as the columns.

        Args:
            ids_E: ids of all positions, one position after the other.
            codes_E: their codes.
            ranks_E: number of each id within its position, from 0.
            counts_N: ids per position.
        """
        ids_E = ids_E.to(self._wide)
        before_E = torch.where(ranks_E > 0, ids_E.roll(1), -1)
        gaps_E = ids_E - before_E - 1
        gaps_E = torch.where(gaps_E < 0, gaps_E + self.vocabulary, gaps_E)
        entries_E = (gaps_E << self.code_bits) | codes_E.to(self._wide)
        if self._planes:
            return planes.split(entries_E, self._planes)
        return {self.name: entries_E, counts_of(self.name): counts_N.int()}

    def unpack(self, columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Arrangement]:
        """Return (int64 ids, codes, their arrangement); ids and codes are [N, K] if the number is fixed, else [E]."""
        entries_E = planes.join(columns, self._planes, self._wide).flatten() if self._planes else columns[self.name]
        codes_E = entries_E & ((1 << self.code_bits) - 1)
        steps_E = (entries_E >> self.code_bits) + 1
        if self.fixed is not None:
            ids_NK = steps_E.view(-1, self.fixed).cumsum(1, dtype=torch.int64) - 1
            return ids_NK, codes_E.view(-1, self.fixed), Arrangement()
        counts_N = columns[counts_of(self.name)].long()
        owners_E, ranks_E = owners_and_ranks(counts_N)
        running_E = steps_E.cumsum(0, dtype=torch.int64)
        # The running sum before the first entry of each position.
        before_N = functional.pad(running_E, (1, 0)).index_select(0, counts_N.cumsum(0) - counts_N)
        ids_E = (running_E - before_N.index_select(0, owners_E) - 1) % self.vocabulary
        return ids_E, codes_E, Arrangement(Ragged.of(counts_N, owners_E, ranks_E))

    def check(
        self,
        columns: Mapping[str, NDArray[Any]],
        codes: tuple[int, int],
        most_ids: int | None,
        floors_N: NDArray[Any] | None = None,
    ) -> None:
        """Check that entries are those of `pack`.

        Args:
            columns: the columns of `unpack`, if they were read.
            codes: the smallest and the largest code.
            most_ids: the most entries of a position, if there is a limit besides the vocabulary.
            floors_N: numbers that are added to a position's codes.

        Raises:
            ValueError: for ids beyond the vocabulary, codes out of range, or too many or too few entries.
        """
        if self._planes:
            if all(column.name in columns for column in self._planes):  # one alone says nothing
                self._check_planes(columns, codes, floors_N)
        elif self.name in columns:
            entries_E, counts_N = columns[self.name], columns[counts_of(self.name)]
            most = min(most_ids or self.vocabulary, self.vocabulary)
            require_within(f"{self.name}: number of ids", counts_N, self.fixed or 1, most)
            require_within(self.name, entries_E, 0, self._below - 1)
            codes_E = entries_E & ((1 << self.code_bits) - 1)
            _check_codes(self.name, codes_E, codes, floors_N, counts_N.cumsum())
            if self.fixed is not None:
                self._check_ids((entries_E >> self.code_bits).reshape(-1, self.fixed).sum(1, dtype=np.int64))

    def _check_planes(
        self, columns: Mapping[str, NDArray[Any]], codes: tuple[int, int], floors_N: NDArray[Any] | None
    ) -> None:
        assert self.fixed is not None
        of_codes, found = self.code_bits // 8, [columns[c.name].reshape(-1, self.fixed) for c in self._planes]
        codes_NK = found[0] if of_codes == 1 else found[0] + 256 * found[1].astype(np.int32)
        _check_codes(self.name, codes_NK, codes, floors_N, self.fixed * np.arange(1, len(codes_NK) + 1))
        skipped_N = np.zeros(len(codes_NK), np.int64)
        for at, plane_NK in enumerate(found[of_codes:]):
            if plane_NK.any():  # the highest one is often empty
                skipped_N += plane_NK.sum(1, dtype=np.uint32).astype(np.int64) << 8 * at
        self._check_ids(skipped_N)

    def _check_ids(self, skipped_N: NDArray[np.int64]) -> None:
        """Check the last id of each position, which is the largest, by the number of ids that it skips."""
        assert self.fixed is not None
        require_within(f"{self.name}: ids", skipped_N + (self.fixed - 1), 0, self.vocabulary - 1)

    def keys_expr(self) -> pl.Expr:
        """list[i64] per position: code * 2 ** 40 + (2 ** 40 - 1 - id)."""
        entry, factor = pl.element().cast(pl.Int64), 2**self.code_bits
        ids = ((entry // factor + 1).cum_sum() - 1) % self.vocabulary
        entries = planes.join_expr(self._planes) if self._planes else self.list_column.expr()
        return entries.list.eval(entry % factor * ID_LIMIT + (ID_LIMIT - 1) - ids)

    def explain(self) -> list[str]:
        """Explain how to read ids and codes without Lectern, in one or two sentences."""
        factor = 2**self.code_bits
        planes_to_entries = (
            f"The entries of a position are `{self.name}_0 + 256 * {self.name}_1 + 65536 * {self.name}_2`, and so on "
            "for all of these columns."
        )
        entries_to_ids = (
            f"Each entry of `{self.name}` is one id: `entry // {factor}` ids are skipped between the previous id and "
            f"this one, so the ids are `(running sum of (entry // {factor} + 1) - 1) % {self.vocabulary}`, and "
            f"`entry % {factor}` is the code."
        )
        return [planes_to_entries, entries_to_ids] if self._planes else [entries_to_ids]

    @property
    def _below(self) -> int:
        """An upper bound: every entry is smaller."""
        return self.vocabulary << self.code_bits

    @property
    def _wide(self) -> torch.dtype:
        return torch.int32 if self.list_column.dtype == "int32" else torch.int64

    @property
    def _planes(self) -> tuple[Column, ...]:
        """The columns that are stored instead of lists; none if lists are stored."""
        if not self.in_planes or self.fixed is None:
            return ()
        return planes.plane_columns(self.name, self._below, self.fixed)


def _check_codes(
    name: str, codes: NDArray[Any], bounds: tuple[int, int], floors_N: NDArray[Any] | None, ends_N: NDArray[np.int64]
) -> None:
    """Check the codes of all entries; those of position n end at ends_N[n]. Raises ValueError."""
    require_within(f"{name}: codes", codes, *bounds)
    if floors_N is None or not codes.size:
        return
    # Few codes are so large that their floor matters.
    places = np.flatnonzero(codes > bounds[1] - int(floors_N.max()))
    floors = floors_N[np.searchsorted(ends_N, places, side="right")].astype(np.int64)
    require_within(f"{name}: codes above their floors", codes.reshape(-1)[places] + floors, *bounds)
