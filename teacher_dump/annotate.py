"""The main path of `dump`: corpus -> tokens -> batches -> teacher -> signals -> shards."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shared.dump.card import write_card
from shared.dump.manifest import Manifest
from shared.dump.rowgroup import RowGroup
from shared.dump.shards import read_receipt, row_group_sizes, shard_path, write_shard
from shared.dump.storage import only_one
from shared.errors import DumpError
from shared.progress import Progress
from shared.text.rows import row_group
from shared.text.tasks import TokenizedRow, task_named
from teacher_dump.batches import cut_batches, pad, shard_order
from teacher_dump.extract import Columns, extract
from teacher_dump.folder import check_folder, enter_folder, remove_leftovers
from teacher_dump.plan import Plan, corpus_of, describe, tokenizing
from teacher_dump.request import Request
from teacher_dump.teacher import Teacher, load_teacher, read_blueprint

DEFAULT_BATCH_TOKENS = {"cuda": 32768, "mps": 8192, "cpu": 4096}


@dataclass(frozen=True)
class Outcome:
    """What one run did: shards of the dump, how many of them it made, its tokens and seconds at work, and how many
    rows were as long as `--max-length` lets them be (and so may have been cut)."""

    shards: int
    made: int
    tokens: int
    seconds: float
    full_rows: int


def prepare(request: Request) -> Plan:
    """Everything that can go wrong before the first forward pass goes wrong here: folder, corpus, teacher, options."""
    task = task_named(request.task)
    positions = task.check_positions(request.positions)
    check_folder(request.out)
    blueprint = read_blueprint(request, task)
    corpus = corpus_of(request, task)
    how = tokenizing(request, blueprint, positions)
    survey = corpus.survey(check=lambda example: task.check_labels(how, example), seed=request.seed)
    teacher = load_teacher(request, task, blueprint)
    return Plan(request, task, teacher, how, corpus, survey, describe(request, task, blueprint, teacher, how, survey))


def annotate(plan: Plan) -> Outcome:
    """Fill the dump's folder: every shard that is not there yet.

    Raises:
        UsageError: when the folder holds another dump, with the list of differences, or another run is at work in it.
        CorpusError, TeacherError, DumpError: when the work fails; what is finished is kept.
    """
    enter_folder(plan.request.out, plan.manifest, plan.how.tokenizer)
    with only_one(plan.request.out):
        remove_leftovers(plan.request.out)
        outcome = _annotate_missing(plan)
        write_card(plan.request.out)
    return outcome


def _annotate_missing(plan: Plan) -> Outcome:
    request, manifest = plan.request, plan.manifest
    missing = [index for index in range(manifest.shards) if read_receipt(request.out, index) is None]
    budget = batch_tokens(request, plan.teacher)
    start, tokens, full_rows = time.monotonic(), 0, 0
    rows_left = sum(len(manifest.rows_of_shard(index)) for index in missing)
    tokens_per_row = plan.sampled_tokens / len(plan.survey.sample)
    with Progress("dump", "tokens", round(rows_left * tokens_per_row), estimated=True) as progress:
        for index, first_row, examples in plan.corpus.blocks(manifest.options.shard_rows, set(missing)):
            rows = plan.task.tokenize(plan.how, examples, first_row)
            shard_tokens = sum(len(row.input_ids) for row in rows)
            rows_left -= len(rows)
            progress.revise_total(progress.done + shard_tokens + round(rows_left * tokens_per_row))
            numbers = range(first_row, first_row + len(rows))
            groups = annotate_rows(plan.teacher, manifest, rows, numbers, budget, progress)
            try:
                write_shard(request.out, index, manifest, groups)
            except OSError as error:
                raise DumpError(
                    f"{shard_path(request.out, index)}: cannot be written ({error.strerror or error}). Finished shards "
                    "are kept; make room (or mend the folder's permissions) and run the same command again."
                ) from error
            tokens += shard_tokens
            full_rows += sum(len(row.input_ids) >= request.max_length for row in rows)
    return Outcome(manifest.shards, len(missing), tokens, time.monotonic() - start, full_rows)


def batch_tokens(request: Request, teacher: Teacher) -> int:
    """The batches' token budget, padding counted."""
    return request.batch_tokens or DEFAULT_BATCH_TOKENS.get(teacher.device.type, DEFAULT_BATCH_TOKENS["cpu"])


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
        for part in cut_batches(lengths, budget, most_rows=1 if teacher.one_row_a_batch else None):
            batch = pad(ordered[part], teacher.pad_token_id, teacher.device)
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
        joined = np.concatenate([columns[name] for columns in held]) if len(held) > 1 else held[0][name]
        at = tokens if name in vectors else positions
        mine[name], rest[name] = joined[:at], joined[at:]
    return mine, rest
