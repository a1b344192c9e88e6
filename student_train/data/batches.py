"""Training batches from row groups: rows are gathered and padded, and the codecs' columns stay encoded.

A thread prepares batches before the trainer needs them. Between two batches it reads some row groups of the next
window, so that no batch has to wait for a whole window.

Shapes: B rows, L tokens of the longest, N recorded positions, T tokens without padding.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from shared.ahead import ahead
from shared.dump.codecs import Mixtures
from shared.dump.rowgroup import RowGroup, to_flat
from shared.models.mixing import MixedInputs
from student_train.data.batch import Batch, Mixed
from student_train.data.gather import Int64, Rows
from student_train.data.order import Order, Window
from student_train.data.sources import Source

# Number of prepared batches: enough for the time of reading some row groups, and few enough to need little memory.
READY_BATCHES = 4


class TrainingBatches(IterableDataset):
    """An endless stream of batches from `first_batch` on, epoch after epoch.

    Args:
        columns: the codecs' columns to read; no others are read.
        rank, ranks: this process takes rows rank, rank + ranks, ... of each batch.
        pinned: whether batches are in pinned memory, from which a GPU copies faster.
        ready: the largest number of prepared batches.
    """

    def __init__(
        self,
        source: Source,
        columns: Sequence[str],
        order: Order,
        first_batch: int = 0,
        rank: int = 0,
        ranks: int = 1,
        pinned: bool = False,
        ready: int = READY_BATCHES,
    ) -> None:
        self.source, self.columns, self.order = source, columns, order
        self.first_batch, self.rank, self.ranks = first_batch, rank, ranks
        self.pinned, self.ready = pinned, ready

    def __iter__(self) -> Iterator[Batch]:
        with ahead(self._batches(), self.ready) as batches:
            yield from batches

    def _batches(self) -> Iterator[Batch]:
        for rows, chosen_B, epoch, is_spare in self._taken():
            batch = replace(batch_of(rows, chosen_B, self.source, epoch), is_spare=is_spare)
            yield batch.pin_memory() if self.pinned else batch

    def gathered(self) -> Iterator[RowGroup]:
        """Yield the batches' rows, flat and without padding; they are made in the calling thread."""
        return (rows.take(chosen_B) for rows, chosen_B, *_ in self._taken())

    def _taken(self) -> Iterator[tuple[Rows, Int64, int, bool]]:
        """Yield (the rows of a window, this rank's rows of a batch among them, the epoch, whether another rank has them
        too) for each batch."""
        epoch, first_window, skip = self.order.seek(self.first_batch)
        windows = self._windows(epoch, first_window)
        following = next(windows)
        loaded: dict[int, RowGroup] = {}
        while True:
            window, following = following, next(windows)
            self._load(loaded, window.groups.tolist())
            rows = Rows([loaded[group] for group in window.groups.tolist()], self.source.per_column)
            batches = self.order.cut(window, rows.lengths)[skip:]
            # Finished row groups are dropped before new ones are read, so at most two windows are in memory.
            needed = following.groups.tolist()
            loaded = {group: loaded[group] for group in needed if group in loaded}
            for number, batch in enumerate(batches):
                # If a batch has no row for a rank, the rank repeats one, because every rank must take the step.
                is_spare = self.rank >= len(batch)
                mine = batch[:1] if is_spare else batch[self.rank :: self.ranks]
                yield rows, mine, window.epoch, is_spare
                self._load(loaded, needed[: len(needed) * (number + 1) // len(batches)])
            skip = 0

    def _windows(self, epoch: int, first: int) -> Iterator[Window]:
        yield from self.order.windows(epoch)[first:]
        for later in count(epoch + 1):
            yield from self.order.windows(later)

    def _load(self, loaded: dict[int, RowGroup], groups: Sequence[int]) -> None:
        loaded.update({group: self.source.load(group, self.columns) for group in groups if group not in loaded})


def in_order(source: Source, columns: Sequence[str], batch_size: int, by_length: bool = False) -> Iterator[Batch]:
    """Yield every row once, in the order of the source, for scoring; `by_length` sorts each row group to pad less."""
    for group, number in enumerate(source.group_rows):
        rows = Rows([source.load(group, columns)], source.per_column)
        partners = Rows([source.partners(group)], {}) if _has_mixtures(source, columns) else None
        order = np.argsort(rows.lengths, kind="stable") if by_length else np.arange(number)
        for start in range(0, number, batch_size):
            yield batch_of(rows, order[start : start + batch_size], source, partners=partners)


def collate(loaded: Mapping[int, RowGroup], references: NDArray[np.int64], source: Source) -> Batch:
    """Put rows, [B, 2] of (row group, row within it), into one padded batch."""
    rows = Rows(list(loaded.values()), source.per_column)
    sizes = [len(group.rows) for group in loaded.values()]
    first = dict(zip(loaded, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    return batch_of(rows, np.asarray([first[group] + row for group, row in references.tolist()]), source)


def batch_of(rows: Rows, chosen_B: Int64, source: Source, epoch: int = 0, partners: Rows | None = None) -> Batch:
    """Put some of the rows into one batch, with their mixtures for this epoch if their columns were read; `partners`
    are the rows with which they may be mixed, by default these."""
    taken = rows.take(chosen_B)
    batch = padded(taken, source)
    if source.mixtures is None or not _has_mixtures(source, taken.columns):
        return batch
    return replace(batch, mixed=_mixed(batch, taken, partners or rows, source, source.mixtures, epoch))


def _has_mixtures(source: Source, columns: Container[str]) -> bool:
    return source.mixtures is not None and source.mixtures.partner_column in columns


def _mixed(batch: Batch, taken: RowGroup, rows: Rows, source: Source, codec: Mixtures, epoch: int) -> Mixed | None:
    """The mixtures of a batch's rows with some of `rows`: in each epoch another draw of each row, from draw 0 on.

    A draw whose partner is not among these rows (it is held out, say) is passed over for the next one, and a row whose
    draws are all passed over is not mixed. None if no row is.
    """
    partners_BD = codec.partners(to_flat(taken.columns))
    places_BD = rows.places(partners_BD)
    turns_D = (epoch + np.arange(codec.draws)) % codec.draws
    is_there_BD = places_BD[:, turns_D] >= 0
    mixed_M = np.flatnonzero(is_there_BD.any(1))
    if not len(mixed_M):
        return None
    draws_M = turns_D[is_there_BD[mixed_M].argmax(1)]
    partners = rows.take(places_BD[mixed_M, draws_M])
    of_rows, of_partners = torch.from_numpy(mixed_M), padded(partners, source)
    weights_BD = codec.weights(to_flat(taken.columns))
    return Mixed(
        rows=of_rows,
        draws=torch.from_numpy(draws_M),
        labels=torch.stack([batch.labels[of_rows], of_partners.labels], 1),
        inputs=MixedInputs.of(
            {name: tensor[of_rows] for name, tensor in batch.inputs.items()},
            of_partners.inputs,
            torch.from_numpy(weights_BD[mixed_M, draws_M]),
            source.tokenizer.pad_token_id or 0,
        ),
    )


def padded(rows: RowGroup, source: Source) -> Batch:
    """Put rows into one batch. Padding is on the right and masked out."""
    lengths = np.diff(rows.token_offsets)
    longest = max(1, int(lengths.max(initial=0)))
    is_token_BL = np.arange(longest) < lengths[:, None]

    def table(values_T: NDArray[Any], fill: int) -> torch.Tensor:
        table_BL = np.full(is_token_BL.shape, fill, np.int64)
        table_BL[is_token_BL] = values_T
        return torch.from_numpy(table_BL)

    return Batch(
        input_ids=table(rows.input_ids, source.tokenizer.pad_token_id or 0),
        attention_mask=torch.from_numpy(is_token_BL.astype(np.int64)),
        index=source.layout.index(rows, longest),
        rows=torch.from_numpy(rows.rows),
        token_type_ids=None if rows.token_type_ids is None else table(rows.token_type_ids, 0),
        columns={name: torch.from_numpy(array) for name, array in to_flat(rows.columns).items()},
    )
