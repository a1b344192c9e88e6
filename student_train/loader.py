"""Row groups -> training batches: gathered rows, padded, with the codecs' columns still encoded.

Shapes: B rows, L tokens of the longest, N recorded positions, T tokens without padding.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from shared.dump.rowgroup import RowGroup, join, to_flat
from student_train.order import References, batches_per_epoch, cut_into_batches, windows
from student_train.sources import Source

# What the trainer moves to the device: inputs for the student, and where and what it is asked.
#   input_ids_BL, attention_mask_BL, token_type_ids_BL (pairs only): int64
#   positions: int64 [N], indices into the flattened [B * L];  labels: int64 [N], -100 where missing
#   columns: what the codecs decode, as stored
#   is_spare: whether another rank has these rows too, so that they count for nothing (training only)
Batch = dict[str, Any]


class TrainingBatches(IterableDataset):
    """An endless stream of batches from `first_batch` on, epoch after epoch.

    Args:
        columns: the codecs' columns to read; no others are touched.
        rank, ranks: of each batch, this process takes rows rank, rank + ranks, ...
    """

    def __init__(
        self,
        source: Source,
        columns: Sequence[str],
        batch_size: int,
        seed: int,
        first_batch: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.source, self.columns, self.batch_size, self.seed = source, columns, batch_size, seed
        self.first_batch, self.rank, self.ranks = first_batch, rank, ranks

    def __iter__(self) -> Iterator[Batch]:
        epoch, skip = divmod(self.first_batch, batches_per_epoch(self.source.group_rows, self.batch_size))
        while True:
            yield from self._epoch(epoch, skip)
            epoch, skip = epoch + 1, 0

    def _epoch(self, epoch: int, skip: int) -> Iterator[Batch]:
        loaded: dict[int, RowGroup] = {}
        for number, rows in enumerate(windows(self.source.group_rows, self.batch_size, self.seed, epoch)):
            count = -(-len(rows) // self.batch_size)
            if skip >= count:
                skip -= count
                continue
            needed = set(rows[:, 0].tolist())
            # What is done with goes before anything new comes, so that there is never more than one window in memory.
            loaded = {group: content for group, content in loaded.items() if group in needed}
            pa.default_memory_pool().release_unused()
            loaded |= {group: self.source.load(group, self.columns) for group in sorted(needed - loaded.keys())}
            lengths = _lengths(loaded, rows)
            batches = cut_into_batches(rows, lengths, self.batch_size, [self.seed, epoch, 2, number])
            for batch in batches[skip:]:
                # A rank for which a short batch has no row repeats one: every rank must take the step.
                is_spare = self.rank >= len(batch)
                mine = batch[:1] if is_spare else batch[self.rank :: self.ranks]
                yield collate(loaded, mine, self.source) | {"is_spare": is_spare}
            skip = 0


def in_order(source: Source, columns: Sequence[str], batch_size: int, by_length: bool = False) -> Iterator[Batch]:
    """Every row once, in the order of the source, for scoring; `by_length` sorts each row group, against padding."""
    for group, count in enumerate(source.group_rows):
        loaded = {group: source.load(group, columns)}
        order = np.argsort(np.diff(loaded[group].token_offsets), kind="stable") if by_length else np.arange(count)
        for start in range(0, count, batch_size):
            rows = order[start : start + batch_size]
            yield collate(loaded, np.stack([np.full(len(rows), group), rows], axis=1), source)


def collate(loaded: dict[int, RowGroup], rows: References, source: Source) -> Batch:
    """The rows named, as one padded batch (padding on the right, masked out)."""
    groups = [(loaded[group], row) for group, row in rows.tolist()]
    token_parts = [slice(group.token_offsets[row], group.token_offsets[row + 1]) for group, row in groups]
    position_parts = [slice(group.position_offsets[row], group.position_offsets[row + 1]) for group, row in groups]
    lengths = np.asarray([part.stop - part.start for part in token_parts])
    longest = max(1, int(lengths.max(initial=0)))
    attention_mask = np.arange(longest) < lengths[:, None]

    def padded(values: list[NDArray[Any]], fill: int) -> torch.Tensor:
        table = np.full((len(groups), longest), fill, np.int64)
        table[attention_mask] = np.concatenate(values)
        return torch.from_numpy(table)

    pairs = list(zip(groups, token_parts, strict=True))
    batch: Batch = {
        "input_ids": padded([group.input_ids[part] for (group, _), part in pairs], source.tokenizer.pad_token_id or 0),
        "attention_mask": torch.from_numpy(attention_mask.astype(np.int64)),
    }
    if groups[0][0].token_type_ids is not None:
        types = [group.token_type_ids[part] for (group, _), part in pairs if group.token_type_ids is not None]
        batch["token_type_ids"] = padded(types, 0)
    recorded = list(zip(groups, position_parts, strict=True))
    batch["positions"] = torch.from_numpy(
        np.concatenate(
            [
                group.positions[part].astype(np.int64) + index * longest
                for index, ((group, _), part) in enumerate(recorded)
            ]
        )
    )
    batch["labels"] = torch.from_numpy(
        np.concatenate([group.labels[part] for (group, _), part in recorded]).astype(np.int64)
    )
    vectors = {column.name for codec in source.vectors.values() for column in codec.columns}
    joined = {
        name: join([group.columns[name][part] for (group, _), part in (pairs if name in vectors else recorded)])
        for name in groups[0][0].columns
    }
    batch["columns"] = {name: torch.from_numpy(array) for name, array in to_flat(joined).items()}
    return batch


def _lengths(loaded: dict[int, RowGroup], rows: References) -> NDArray[np.int64]:
    lengths = np.zeros(len(rows), np.int64)
    for group, content in loaded.items():
        mine = rows[:, 0] == group
        lengths[mine] = np.diff(content.token_offsets)[rows[mine, 1]]
    return lengths
