"""Subsets of a source's rows, as sources: those on which a stage trains, and those that are held out.

Which rows these are is a pure function of the source, the seed and the recipe, so it is the same on every rank and
after every resume. It needs the number and the gold labels of each row, which are read before the first step.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from shared.dump.codecs.selection.uniforms import position_keys, uniforms
from shared.dump.reader import GroupSizes
from shared.dump.rowgroup import RowGroup
from student_train.data.gather import Rows
from student_train.data.sources import Source

Bools = NDArray[np.bool_]
# Rows with a gold label, rows without one, or both.
Kind = Literal["all", "labelled", "unlabelled"]

# Dumps draw with the keys of positions from 0 on; these draws must be independent of them.
_NO_POSITION = -1


class Selected(Source):
    """The chosen rows of a source, by one array of bools per row group. Row groups without any are never read.

    `may_be_partners` says in the same way with which rows they may be mixed; by default with one another.
    """

    def __init__(
        self,
        whole: Source,
        name: str,
        is_taken: Sequence[Bools],
        has_gold: bool,
        may_be_partners: Sequence[Bools] | None = None,
    ) -> None:
        self._whole = whole
        self._groups = [group for group, taken in enumerate(is_taken) if taken.any()]
        self._kept = [np.flatnonzero(is_taken[group]) for group in self._groups]
        self._partners = [np.flatnonzero((may_be_partners or is_taken)[group]) for group in self._groups]
        values = {field.name: getattr(whole, field.name) for field in fields(Source)}
        rows = tuple(len(kept) for kept in self._kept)
        super().__init__(**values | {"name": name, "group_rows": rows, "has_gold": has_gold})

    def load(self, group: int, columns: Sequence[str]) -> RowGroup:
        return self._some(group, columns, self._kept[group])

    def partners(self, group: int) -> RowGroup:
        return self._some(group, [], self._partners[group])

    def _some(self, group: int, columns: Sequence[str], kept: NDArray[np.int64]) -> RowGroup:
        loaded = self._whole.load(self._groups[group], columns)
        return loaded if len(kept) == len(loaded.rows) else Rows([loaded], self.per_column).take(kept)

    def sizes(self, columns: Sequence[str]) -> GroupSizes:
        """The sizes of the subset, with tokens and bytes in proportion to the rows.

        This is an estimate; in a dump, the rows of a row group are of similar length.
        """
        whole, rows = self._whole.sizes(columns), np.asarray(self.group_rows, np.int64)
        shares = rows / whole.rows[self._groups]
        return GroupSizes(
            rows,
            np.maximum(np.rint(whole.tokens[self._groups] * shares).astype(np.int64), rows),
            np.rint(whole.bytes[self._groups] * shares).astype(np.int64),
        )


class Split:
    """A source's rows, divided by whether they are held out and whether they have a gold label.

    Args:
        share: the share of rows that is held out, drawn from `seed` and the row's number only; 0 for none. All windows
            of one question's context are held out together.
    """

    def __init__(self, source: Source, share: float, seed: int) -> None:
        self.source, self._share, self._seed = source, share, seed
        self._facts: list[tuple[Bools, Bools]] | None = None

    def to_train(self, kind: Kind) -> Source:
        """The rows of a kind that are not held out; there may be none."""
        if not self._share and kind == "all":
            return self.source
        return self._selected(kind, [~held_out & fits for held_out, fits in self._by_kind(kind)])

    def held_out(self, kind: Kind, rank: int = 0, ranks: int = 1) -> Source:
        """This rank's part of the rows of a kind that are held out; they may be mixed with those of all ranks."""
        of_all = [held_out & fits for held_out, fits in self._by_kind(kind)]
        taken = [each.copy() for each in of_all]
        turns = np.cumsum([0, *(int(each.sum()) for each in taken)])
        for each, first in zip(taken, turns.tolist(), strict=False):
            places = np.flatnonzero(each)
            each[places[(first + np.arange(len(places))) % ranks != rank]] = False
        return self._selected(kind, taken, of_all)

    def _selected(
        self, kind: Kind, is_taken: Sequence[Bools], may_be_partners: Sequence[Bools] | None = None
    ) -> Source:
        name = self.source.name if kind == "all" else f"the {kind} rows of {self.source.name}"
        has_gold = self.source.has_gold and kind != "unlabelled"
        return Selected(self.source, name, is_taken, has_gold, may_be_partners)

    def _by_kind(self, kind: Kind) -> list[tuple[Bools, Bools]]:
        """For each row group, (whether each row is held out, whether it is of the kind)."""
        if self._facts is None:
            self._facts = []
            for group in range(len(self.source.group_rows)):
                rows, is_labelled = self.source.gold(group)
                self._facts.append((is_held_out(rows, self._share, self._seed), is_labelled))
        wanted = {"all": (True, False), "labelled": (True,), "unlabelled": (False,)}[kind]
        return [(held_out, np.isin(is_labelled, wanted)) for held_out, is_labelled in self._facts]


def first_rows(source: Source, count: int) -> Source:
    """The first rows of a source's first row group."""
    rows = np.asarray(source.group_rows)
    is_taken = [np.arange(number) < (count if group == 0 else 0) for group, number in enumerate(rows.tolist())]
    return Selected(source, source.name, is_taken, source.has_gold)


def is_held_out(rows: NDArray[np.int64], share: float, seed: int) -> Bools:
    """Whether each of these rows of a corpus is held out, bool [R].

    >>> is_held_out(np.arange(8), 0.25, seed=0).tolist()
    [True, False, False, True, False, True, False, False]
    """
    numbers = torch.from_numpy(rows.astype(np.int64))
    draws = uniforms(position_keys(seed, numbers, torch.full_like(numbers, _NO_POSITION)), 1)
    is_drawn: Bools = draws[:, 0].numpy() < share
    return is_drawn
