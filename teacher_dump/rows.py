"""One shard's rows -> batches -> teacher -> the shard's row groups.

Batches never decide anything that is written: row groups are cut from the rows' lengths, whatever the budget.
"""

from collections.abc import Iterator, Sequence

from shared.dump.manifest import Manifest
from shared.dump.rowgroup import RowGroup, join
from shared.dump.shards import row_group_sizes
from shared.progress import Progress
from shared.text.rows import row_group
from shared.text.tasks import TokenizedRow
from teacher_dump.batches import Batch, cut_batches, pad, shard_order
from teacher_dump.extract import Columns, extract
from teacher_dump.request import Request
from teacher_dump.teacher import Teacher

DEFAULT_BATCH_TOKENS = {"cuda": 32768, "mps": 8192, "cpu": 4096}


def batch_tokens(request: Request, teacher: Teacher) -> int:
    """The batches' token budget, padding counted."""
    return request.batch_tokens or DEFAULT_BATCH_TOKENS.get(teacher.device.type, DEFAULT_BATCH_TOKENS["cpu"])


def batches_of(teacher: Teacher, rows: Sequence[TokenizedRow], budget: int) -> Iterator[tuple[slice, Batch]]:
    """Rows in the order of a shard -> (which of them, the batch on the teacher's device)."""
    lengths = [len(row.input_ids) for row in rows]
    for part in cut_batches(lengths, budget, most_rows=1 if teacher.one_row_a_batch else None):
        yield part, pad(rows[part], teacher.pad_token_id, teacher.device)


def annotate_rows(
    teacher: Teacher,
    manifest: Manifest,
    rows: Sequence[TokenizedRow],
    numbers: Sequence[int],
    budget: int,
    progress: Progress,
) -> Iterator[RowGroup]:
    """One shard's rows, numbered as in the corpus -> its row groups, in the shard's order, whatever batches the budget
    makes of them."""
    order = shard_order(rows)
    ordered, numbers = [rows[index] for index in order], [numbers[index] for index in order]
    lengths = [len(row.input_ids) for row in ordered]
    sizes = row_group_sizes(manifest, lengths, [len(row.positions) for row in ordered])

    def batches() -> Iterator[tuple[int, Columns]]:
        for part, batch in batches_of(teacher, ordered, budget):
            columns = extract(teacher, manifest, batch, numbers[part])
            progress.advance(batch.tokens)
            yield len(batch.rows), columns

    pieces = batches()
    start, held_rows = 0, 0
    held: list[Columns] = []
    for size in sizes:
        while held_rows < size:
            count, columns = next(pieces)
            held_rows += count
            held.append(columns)
        group = row_group(ordered[start : start + size], numbers[start : start + size])
        group.columns, rest = _split(held, manifest, len(group.input_ids), len(group.positions))
        yield group
        held, held_rows, start = [rest], held_rows - size, start + size


def _split(held: list[Columns], manifest: Manifest, tokens: int, positions: int) -> tuple[Columns, Columns]:
    """Columns of several batches -> those of a row group with so many tokens and positions, and what is left over."""
    vectors = {column.name for codec in manifest.vectors.values() for column in codec.columns}
    mine: Columns = {}
    rest: Columns = {}
    for name in held[0] if held else ():
        joined = join([columns[name] for columns in held]) if len(held) > 1 else held[0][name]
        at = tokens if name in vectors else positions
        mine[name], rest[name] = joined[:at], joined[at:]
    return mine, rest
