"""The main path of `dump`: corpus -> tokens -> batches -> teacher -> signals -> shards.

Three stages run at the same time: one thread reads and tokenizes, one runs the teacher and encodes its outputs, and the
main thread writes. Several processes share nothing but the folder: each takes the next shard that no other process is
making.
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

from shared.ahead import ahead
from shared.dump.card import write_card
from shared.dump.dump import Dump
from shared.dump.integrity.receipts import finished_receipt, own_receipt, read_receipts, shard_path
from shared.dump.manifest import FILE_NAME, Manifest
from shared.dump.shards import write_shard
from shared.dump.weights.tensor_file import IMPORTANCE
from shared.errors import CorpusError, DumpError, UsageError
from shared.progress import Progress
from shared.text.tasks import task_named
from teacher_dump.batching.memory import Budget, extract_within_memory
from teacher_dump.batching.mixing import mixed
from teacher_dump.batching.rows import ShardRows, batches_of, row_groups
from teacher_dump.calibrate import as_begun, calibrate
from teacher_dump.claims import Claims, Shares, claims_in
from teacher_dump.engines import describe_teacher
from teacher_dump.engines.batch import Batch
from teacher_dump.extract import Columns, Encoded
from teacher_dump.folder import begin_folder, check_folder, make_folder, refuse_another, remove_leftovers
from teacher_dump.plan import Plan, corpus_of, describe, tokenizing
from teacher_dump.request import Request
from teacher_dump.tensor_files.importance import check_labels, measured
from teacher_dump.workers import worker

# The most batches that wait for the teacher, and encoded batches that wait for the writer.
DEPTH = 4
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass
class Outcome:
    """What one run did.

    Attributes:
        shards: number of shards of the whole dump.
        made: number of shards that this process made.
        tokens, seconds: tokens of these shards, and the time they took.
        full_rows: number of rows with `--max-length` tokens, which may have been truncated.
        teacher_seconds: time in which the teacher neither waited for batches nor for the writer.
    """

    shards: int
    made: int = 0
    tokens: int = 0
    seconds: float = 0.0
    full_rows: int = 0
    teacher_seconds: float = 0.0


def prepare(request: Request) -> Plan:
    """Check folder, corpus, teacher and options, so that mistakes in them are found before the dump begins."""
    task = task_named(request.task)
    positions = task.check_positions(request.positions)
    check_folder(request.folder)
    description = describe_teacher(request, task)
    if description.cut_at is not None:
        request = dataclasses.replace(request, max_length=min(request.max_length, description.cut_at))
    how = tokenizing(request, task, description, positions)
    corpus = corpus_of(request, task, how)
    task.check_tokenizing(how)
    survey = corpus.survey(
        check=lambda example: task.check_row(how, example), seed=request.seed, block_rows=request.shard_rows
    )
    check_labels(request, task, task.layout(positions), survey.labelled_rows)
    engine = description.load()
    draft = describe(request, task, description, engine, how, survey)
    plan = Plan(request, task, engine, how, corpus, survey, draft)
    if how.chats and not any(len(row.positions) for row in plan.sampled_rows[1]):
        raise UsageError(
            f"none of {len(survey.sample)} sampled chats has any of the positions {how.positions!r} in its first "
            f"{request.max_length} tokens; check --max-length, and whether the role of the answers is 'assistant'."
        )
    return dataclasses.replace(plan, manifest=_fitted(plan))


def _fitted(plan: Plan) -> Manifest:
    """The plan's manifest with its signals fitted to a sample, or as they were fitted when this dump was begun."""
    out, draft = plan.request.folder, plan.manifest
    if (out / FILE_NAME).exists():
        return as_begun(Dump(out).manifest, draft)
    numbers, rows = plan.sampled_rows
    fitted = calibrate(plan.engine, draft, rows, numbers, Budget(plan.request.batch_tokens, plan.engine))
    return _with_importance(plan, fitted).identified()


def _with_importance(plan: Plan, manifest: Manifest) -> Manifest:
    """The manifest with the importance of the teacher's parts, if it is asked for."""
    if plan.request.importance is None:
        return manifest
    rows = plan.loss_rows(plan.request.importance)
    file = measured(plan.request, plan.engine, plan.task, plan.loss_layout, rows)
    return manifest.model_copy(update={"tensor_files": {**manifest.tensor_files, IMPORTANCE: file}})


def annotate(plan: Plan) -> Outcome:
    """Make the missing shards, together with any other processes that run the same command.

    Raises:
        UsageError: if the folder holds another dump, with the list of differences.
        CorpusError, TeacherError, DumpError: if the work fails; finished shards are kept.
    """
    out = plan.request.folder
    plan = _agreed(plan)  # before anything is written to a folder that may hold another dump
    make_folder(out)
    with claims_in(out) as claims:
        with claims.alone():
            remove_leftovers(out)
            plan = _agreed(plan)
            if not (out / FILE_NAME).exists():
                begin_folder(out, plan.manifest, plan.how.tokenizer)
        outcome = _annotate_missing(plan, claims)
        with claims.alone():
            write_card(out)
            claims.remove()
    return outcome


def _agreed(plan: Plan) -> Plan:
    """The plan with its signals as they were fitted when the dump was begun, perhaps by another process just now."""
    out = plan.request.folder
    if (out / FILE_NAME).exists():
        plan = dataclasses.replace(plan, manifest=_fitted(plan))
        refuse_another(out, plan.manifest)
    return plan


def _annotate_missing(plan: Plan, claims: Claims | Shares) -> Outcome:
    me = worker()
    budget = Budget(plan.request.batch_tokens, plan.engine)
    sample = plan.sampled_rows[1]
    if plan.request.batch_tokens is None and plan.engine.memory.is_measured and sample:
        budget.fit(plan.engine, plan.manifest, max(sample, key=lambda row: len(row.input_ids)))
    # No shard is made beside those of another dump.
    read_receipts(plan.request.folder, plan.manifest.shards, plan.manifest.identity, own_receipt)
    outcome, start = Outcome(plan.manifest.shards), time.monotonic()
    with Progress(me.label("dump"), "tokens", 0, estimated=True, bar=me.count == 1) as progress:
        while missing := claims.mine(_missing(plan)):
            _annotate_claimed(plan, claims, missing, budget, outcome, progress)
            _wait_for_others(plan, claims, progress)
    outcome.seconds = time.monotonic() - start
    return outcome


def _annotate_claimed(
    plan: Plan, claims: Claims | Shares, missing: list[int], budget: Budget, outcome: Outcome, progress: Progress
) -> None:
    """Pass over the corpus once, and make every missing shard that no other process is making."""
    progress.revise_total(progress.done + _tokens_ahead(plan, claims, missing, -1))
    mine = _Mine(plan, claims, missing)
    with (
        ahead(_read(plan, mine, budget), DEPTH) as batches,
        ahead(_run(plan, batches, budget, progress), DEPTH) as pieces,
        closing(mine),
    ):
        begun = time.monotonic()
        for shard, of_shard in groupby(pieces, key=lambda piece: piece.shard):
            _write(plan, shard, of_shard, progress)
            claims.release(shard.index)
            outcome.made += 1
            outcome.tokens += shard.tokens
            outcome.full_rows += sum(length >= plan.request.max_length for length in shard.lengths)
            progress.revise_total(progress.done + _tokens_ahead(plan, claims, missing, shard.index))
        outcome.teacher_seconds += time.monotonic() - begun - batches.starved_seconds - pieces.blocked_seconds


@dataclass(frozen=True)
class _Piece:
    """Rows of a shard on their way through the stages; `encoded` is None before the second stage."""

    shard: ShardRows
    batch: Batch
    encoded: Encoded | None = None


def _read(plan: Plan, mine: "_Mine", budget: Budget) -> Iterator[_Piece]:
    """First stage: read and tokenize the rows of the corpus, shard by shard, and put them into batches."""
    for index, first_row, parse in plan.corpus.blocks(plan.manifest.options.shard_rows):
        if mine.take(index):
            rows = plan.task.tokenize(plan.how, parse(), first_row)
            if len(rows) != len(plan.manifest.rows_of_shard(index)):
                break
            shard = mixed(plan.manifest, ShardRows.in_order(rows, range(first_row, first_row + len(rows)), index))
            for batch in batches_of(plan.engine, plan.manifest.layout, shard, budget):
                yield _Piece(shard, batch)
        if index >= mine.last:  # reading to the end of the corpus may take hours
            return
    raise CorpusError(
        f"{', '.join(plan.corpus.files)}: the corpus has changed since this run began and no longer has "
        f"{plan.survey.rows:,} rows. Finished shards are kept; restore it and run the same command again."
    )


def _run(plan: Plan, pieces: Iterable[_Piece], budget: Budget, progress: Progress) -> Iterator[_Piece]:
    """Second stage: run the teacher and encode its outputs on its device."""
    for piece in pieces:
        for batch, encoded in extract_within_memory(plan.engine, plan.manifest, piece.batch, budget, progress.say):
            yield _Piece(piece.shard, batch, encoded)


def _write(plan: Plan, shard: ShardRows, pieces: Iterable[_Piece], progress: Progress) -> None:
    """Third stage: write one shard and commit it."""
    out, manifest = plan.request.folder, plan.manifest

    def columns() -> Iterator[tuple[int, Columns]]:
        for piece in pieces:
            assert piece.encoded is not None
            progress.advance(piece.batch.tokens)
            yield len(piece.batch.rows), piece.encoded.columns(manifest)

    try:
        write_shard(out, shard.index, manifest, row_groups(manifest, shard, columns()))
    except OSError as error:
        raise DumpError(
            f"{shard_path(out, shard.index)}: cannot be written ({error.strerror or error}). Finished shards are kept; "
            "make room (or change the folder's permissions) and run the same command again."
        ) from error


class _Mine:
    """The missing shards that this process takes; `last` is the index after which there are none."""

    def __init__(self, plan: Plan, claims: Claims | Shares, missing: list[int]) -> None:
        self._out, self._identity = plan.request.folder, plan.manifest.identity
        self._claims, self._missing = claims, set(missing)
        self.last = max(missing)

    def close(self) -> None:
        """Take no more shards."""
        self.last = -1

    def take(self, index: int) -> bool:
        """Claim a shard if it is missing and no other process is making it; return whether it was claimed."""
        if index > self.last or index not in self._missing or not self._claims.claim(index):
            return False
        if finished_receipt(self._out, index, self._identity) is None:
            return True
        self._claims.release(index)  # another process has finished it in the meantime
        return False


def _missing(plan: Plan) -> list[int]:
    manifest = plan.manifest
    finished = read_receipts(plan.request.folder, manifest.shards, manifest.identity, finished_receipt)
    return [index for index in range(plan.manifest.shards) if index not in finished]


def _wait_for_others(plan: Plan, claims: Claims | Shares, progress: Progress) -> None:
    """Wait until every shard is finished, or one is free because the process that was making it has died."""
    announced = False
    while (missing := claims.mine(_missing(plan))) and not any(claims.is_free(index) for index in missing):
        if not announced:
            progress.say(f"waiting for other processes, which are at work on {len(missing)} more of the shards")
            announced = True
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _tokens_ahead(plan: Plan, claims: Claims | Shares, missing: list[int], done: int) -> int:
    """An estimate of the tokens that this process will handle after shard `done`: an even share of the missing ones."""
    rows = sum(len(plan.manifest.rows_of_shard(index)) for index in missing if index > done)
    return round(rows * plan.sampled_tokens / len(plan.survey.sample) / claims.takers)
