"""One shard's rows -> batches; and what the teacher says about these -> the shard's row groups.

Batches never decide anything that is written: row groups are cut from the rows' lengths, whatever the budget.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from shared.dump.manifest import Manifest
from shared.dump.rowgroup import RowGroup, join
from shared.dump.shards import row_group_sizes
from shared.progress import Progress
from shared.text.rows import row_group
from shared.text.tasks import TokenizedRow
from teacher_dump.batches import Batch, cut_batches, pad, shard_order
from teacher_dump.engines.transformers.packing import packed_inputs
from teacher_dump.engines.transformers.teacher import Teacher
from teacher_dump.extract import Columns, extract


@dataclass(frozen=True, eq=False)
class ShardRows:
    """The rows of a shard in the order in which they lie there, numbered as in the corpus."""

    rows: Sequence[TokenizedRow]
    numbers: Sequence[int]
    index: int = 0

    @classmethod
    def in_order(cls, rows: Sequence[TokenizedRow], numbers: Sequence[int], index: int = 0) -> "ShardRows":
        """Rows in any order -> the shard."""
        order = shard_order(rows)
        return cls([rows[at] for at in order], [numbers[at] for at in order], index)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row.input_ids) for row in self.rows]

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(self.lengths)


def batches_of(teacher: Teacher, shard: ShardRows, batch_tokens: Callable[[], int]) -> Iterator[Batch]:
    """The shard's batches, on the host."""
    for part in cut_batches(shard.lengths, batch_tokens, most_rows=1 if teacher.one_row_a_batch else None):
        yield batch_of(teacher, shard.rows[part], shard.numbers[part])


def batch_of(teacher: Teacher, rows: Sequence[TokenizedRow], numbers: Sequence[int]) -> Batch:
    """Rows as one batch: without padding where the teacher's attention allows it."""
    has_tokens = any(len(row.input_ids) for row in rows)  # without one, padding is all that a model could be given
    if teacher.packs and teacher.attention is not None and has_tokens:
        inputs = packed_inputs(rows, teacher.attention.first_position, torch.device("cpu"))
        batch = Batch(rows, numbers, inputs, packed=True)
    else:
        batch = pad(rows, numbers, teacher.pad_token_id)
    return batch.pinned() if teacher.device.type == "cuda" else batch


def annotate_rows(
    teacher: Teacher, manifest: Manifest, shard: ShardRows, batches: Iterable[Batch], progress: Progress
) -> Iterator[RowGroup]:
    """A few rows, as batches -> their row groups, one batch after the other: for samples."""

    def pieces() -> Iterator[tuple[int, Columns]]:
        for batch in batches:
            columns = extract(teacher, manifest, batch).columns(manifest)
            progress.advance(batch.tokens)
            yield len(batch.rows), columns

    return row_groups(manifest, shard, pieces())


def row_groups(manifest: Manifest, shard: ShardRows, pieces: Iterable[tuple[int, Columns]]) -> Iterator[RowGroup]:
    """Pieces (how many rows, their columns), in the shard's order and cut anyhow -> the shard's row groups."""
    pieces = iter(pieces)
    start, held_rows = 0, 0
    held: list[Columns] = []
    for size in row_group_sizes(manifest, shard.lengths, [len(row.positions) for row in shard.rows]):
        while held_rows < size:
            count, columns = next(pieces)
            held_rows += count
            held.append(columns)
        group = row_group(shard.rows[start : start + size], shard.numbers[start : start + size])
        group.columns, rest = _split(held, manifest, group)
        yield group
        held, held_rows, start = [rest], held_rows - size, start + size


def _split(held: list[Columns], manifest: Manifest, group: RowGroup) -> tuple[Columns, Columns]:
    """Columns of several batches -> those of a row group, and what is left over."""
    mine: Columns = {}
    rest: Columns = {}
    for name, per in manifest.per_column.items() if held else ():
        joined = join([columns[name] for columns in held]) if len(held) > 1 else held[0][name]
        at = int(group.offsets(per)[-1])
        mine[name], rest[name] = joined[:at], joined[at:]
    return mine, rest
