"""The main path of `dump`: corpus -> tokens -> batches -> teacher -> signals -> shards."""

import dataclasses
import time
from dataclasses import dataclass

from shared.dump.card import write_card
from shared.dump.manifest import FILE_NAME, Manifest, read_manifest
from shared.dump.shards import read_receipt, shard_path, write_shard
from shared.dump.storage import only_one
from shared.dump.weights import load_weights
from shared.errors import DumpError, UsageError
from shared.progress import Progress
from shared.text.tasks import task_named
from teacher_dump.calibrate import as_begun, calibrate
from teacher_dump.folder import check_folder, enter_folder, remove_leftovers
from teacher_dump.plan import Plan, corpus_of, describe, tokenizing
from teacher_dump.request import Request
from teacher_dump.rows import annotate_rows, batch_tokens
from teacher_dump.teacher import load_teacher, read_blueprint


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
    task.check_chats(how)
    survey = corpus.survey(check=lambda example: task.check_row(how, example), seed=request.seed)
    teacher = load_teacher(request, task, blueprint)
    draft = describe(request, task, blueprint, teacher, how, survey)
    plan = Plan(request, task, teacher, how, corpus, survey, draft)
    if how.chats and not any(len(row.positions) for row in plan.sampled_rows[1]):
        raise UsageError(
            f"none of {len(survey.sample)} sampled chats has any of the positions {how.positions!r} in its first "
            f"{request.max_length} tokens; check --max-length, and that the role of the answers is 'assistant'."
        )
    return dataclasses.replace(plan, manifest=_fitted(plan))


def _fitted(plan: Plan) -> Manifest:
    """The plan's manifest with its signals fitted to a sample, or as the dump that is there already was begun."""
    out, draft = plan.request.out, plan.manifest
    if (out / FILE_NAME).exists():
        return as_begun(load_weights(read_manifest(out), out), draft)
    numbers, rows = plan.sampled_rows
    return calibrate(plan.teacher, draft, rows, numbers, batch_tokens(plan.request, plan.teacher))


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
