"""The layout with one distribution for the whole row, and its gold label in the column `label`."""

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl
from torch import Tensor

from shared.dump.layouts.base import BatchIndex, Field, Layout, Places
from shared.dump.layouts.frames import Recorded
from shared.dump.layouts.readable import gold_and_candidates
from shared.dump.rowgroup import MISSING, Flat, Int32, Offsets, RowGroup, check_labels

LABEL = Field("label", "int32", "gold label of the row, or null", is_list=False, holds_gold=True)


class Row(Layout):
    """One distribution for each row."""

    name = "row"
    place = "one for the row"
    by_row = True

    def fields(self, labelled: bool) -> tuple[Field, ...]:
        return (LABEL,) if labelled else ()

    def pack(self, group: RowGroup, labelled: bool) -> dict[str, Flat]:
        return {LABEL.name: Flat(group.labels)} if labelled else {}

    def unpack(self, columns: Mapping[str, Flat], labelled: bool, token_offsets: Offsets, input_ids: Int32) -> Places:
        rows = len(token_offsets) - 1
        labels = columns[LABEL.name].numbers() if labelled else np.full(rows, MISSING, np.int32)
        return Places(np.arange(rows + 1, dtype=np.int64), np.zeros(rows, np.int32), labels)

    def check(self, columns: Mapping[str, Flat], token_offsets: Offsets | None, classes: int) -> Offsets | None:
        check_labels(LABEL.name, columns, classes - 1)
        return None if token_offsets is None else np.arange(len(token_offsets), dtype=np.int64)

    def per_position(self, labelled: bool) -> dict[str, pl.Expr]:
        return {"label": pl.concat_list("label")} if labelled else {}

    def lines(self, dump: Recorded, positions: pl.DataFrame, candidates: int, most_positions: int) -> Iterator[str]:
        for row in positions.iter_rows(named=True):
            gold, found = gold_and_candidates(dump, row, candidates)
            yield f"  gold: {gold}   teacher: {found}"

    def distributions(self, logits: Tensor, index: BatchIndex) -> Tensor:
        return logits
