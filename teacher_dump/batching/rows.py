"""Put a shard's rows into batches of similar length, and the encoded outputs into the shard's row groups.

What is written does not depend on the batches: row groups are cut by the lengths of the rows, not by the batch budget.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from shared.dump.layouts import Layout
from shared.dump.manifest import Manifest
from shared.dump.rowgroup import RowGroup, join
from shared.dump.shards import row_group_sizes
from shared.models.mixing import MixedInputs
from shared.progress import Progress
from shared.text.rows import row_group
from shared.text.tokenized import TokenizedRow
from teacher_dump.engines.base import Engine
from teacher_dump.engines.batch import Batch, MixedRows, Mixture, pad
from teacher_dump.extract import Columns, extract


@dataclass(frozen=True, eq=False)
class ShardRows:
    """The rows of a shard in the order of the file, their numbers in the corpus, and what each is mixed with."""

    rows: Sequence[TokenizedRow]
    numbers: Sequence[int]
    index: int = 0
    mixtures: Sequence[Sequence[Mixture]] = ()

    @classmethod
    def in_order(cls, rows: Sequence[TokenizedRow], numbers: Sequence[int], index: int = 0) -> "ShardRows":
        """Sort rows into the order of the shard."""
        order = shard_order(rows)
        return cls([rows[at] for at in order], [numbers[at] for at in order], index)

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each row."""
        return [len(row.input_ids) for row in self.rows]

    @property
    def tokens(self) -> int:
        """The number of tokens of all rows."""
        return sum(self.lengths)


def shard_order(rows: Sequence[TokenizedRow]) -> list[int]:
    """Indices of the rows, longest first (so that memory runs out at once or not at all), then by row number."""
    return sorted(range(len(rows)), key=lambda index: (-len(rows[index].input_ids), index))


def cut_batches(
    lengths: Sequence[int], batch_tokens: Callable[[], int], most_rows: int | None = None
) -> Iterator[slice]:
    """Yield slices of rows with at most `batch_tokens()` tokens, including padding; a single row may have more.

    Lengths must be in descending order. `batch_tokens` is called for each slice, since the budget may change.
    """
    start = 0
    while start < len(lengths):
        count = max(1, batch_tokens() // max(1, lengths[start]))
        stop = min(start + min(count, most_rows or count), len(lengths))
        yield slice(start, stop)
        start = stop


def batches_of(engine: Engine, layout: Layout, shard: ShardRows, batch_tokens: Callable[[], int]) -> Iterator[Batch]:
    """Yield the shard's batches, on the host."""
    for part in cut_batches(shard.lengths, batch_tokens, most_rows=1 if engine.one_row_a_batch else None):
        yield batch_of(engine, layout, shard.rows[part], shard.numbers[part], shard.mixtures[part])


def batch_of(
    engine: Engine,
    layout: Layout,
    rows: Sequence[TokenizedRow],
    numbers: Sequence[int],
    mixtures: Sequence[Sequence[Mixture]] = (),
) -> Batch:
    """Rows (`numbers` in the corpus) as one batch on the host, with the inputs that the layout and mixtures add."""
    batch = engine.batch(rows, numbers)
    if mixtures:
        batch = engine.on_host(replace(batch, mixtures=mixtures, mixed=tuple(_mixed_rows(engine, batch, mixtures))))
    if not layout.columns:
        return batch
    index = layout.index(row_group(rows, numbers), batch.width)
    inputs = {**batch.inputs, **index.inputs}
    return engine.on_host(replace(batch, inputs=inputs, positions=index.positions.numpy()))


def _mixed_rows(engine: Engine, batch: Batch, mixtures: Sequence[Sequence[Mixture]]) -> Iterator[MixedRows]:
    """Yield the inputs for a batch's mixtures, in parts with at most as many tokens as the batch has, longest first."""
    rows = [row for row, drawn in zip(batch.rows, mixtures, strict=True) for _ in drawn]
    drawn = [mixture for of_row in mixtures for mixture in of_row]
    lengths = [max(len(row.input_ids), len(each.partner.input_ids)) for row, each in zip(rows, drawn, strict=True)]
    order = sorted(range(len(rows)), key=lambda at: -lengths[at])
    budget = batch.inputs["input_ids"].numel()
    for part in cut_batches([lengths[at] for at in order], lambda: budget):
        places = order[part]
        first, second = (
            pad(each, places, engine.pad_token_id).inputs
            for each in ([rows[at] for at in places], [drawn[at].partner for at in places])
        )
        weights_M = torch.tensor([drawn[at].weight for at in places])
        yield MixedRows(np.asarray(places), MixedInputs.of(first, second, weights_M, engine.pad_token_id))


def annotate_rows(
    engine: Engine, manifest: Manifest, shard: ShardRows, batches: Iterable[Batch], progress: Progress
) -> Iterator[RowGroup]:
    """Yield the row groups of a few rows, given as batches, without threads: for samples."""

    def pieces() -> Iterator[tuple[int, Columns]]:
        for batch in batches:
            columns = extract(engine, manifest, batch).columns(manifest)
            progress.advance(batch.tokens)
            yield len(batch.rows), columns

    return row_groups(manifest, shard, pieces())


def row_groups(manifest: Manifest, shard: ShardRows, pieces: Iterable[tuple[int, Columns]]) -> Iterator[RowGroup]:
    """Yield the shard's row groups from pieces (number of rows, their columns) of any sizes, in the shard's order."""
    pieces = iter(pieces)
    start, held_rows = 0, 0
    held: list[Columns] = []
    for size in row_group_sizes(manifest, shard.lengths, [len(row.positions) for row in shard.rows]):
        while held_rows < size:
            count, columns = next(pieces)
            held_rows += count
            held.append(columns)
        group = row_group(shard.rows[start : start + size], shard.numbers[start : start + size])
        columns, rest = _split(held, manifest, group)
        group.columns |= columns
        yield group
        held, held_rows, start = [rest], held_rows - size, start + size


def _split(held: list[Columns], manifest: Manifest, group: RowGroup) -> tuple[Columns, Columns]:
    """(the columns of a row group, the columns of the rows after it), from the columns of several batches."""
    mine: Columns = {}
    rest: Columns = {}
    for name, per in manifest.per_column.items() if held else ():
        joined = join([columns[name] for columns in held]) if len(held) > 1 else held[0][name]
        at = int(group.offsets(per)[-1])
        mine[name], rest[name] = joined[:at], joined[at:]
    return mine, rest
