"""The command line `dump`."""

from typing import TYPE_CHECKING, Annotated

import typer

from shared.cli import EPILOG, run
from shared.options import grouped
from shared.progress import human_bytes, human_seconds
from teacher_dump.request import Request

if TYPE_CHECKING:  # so that --help does not load torch
    from teacher_dump.annotate import Outcome
    from teacher_dump.estimate import Estimate
    from teacher_dump.plan import Plan

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog=EPILOG)
@grouped
def dump(
    request: Request,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure a sample, print rows, tokens, bytes and time, and write nothing.")
    ] = False,
) -> None:
    """Run a teacher once over a corpus and record its outputs, the targets of students, in Parquet shards.

    Example: dump --teacher models/teacher --task sequence-classification --data reviews.jsonl --out out/dump
    """
    # Imported here so that --help does not load torch.
    from teacher_dump.annotate import annotate, prepare
    from teacher_dump.estimate import estimate
    from teacher_dump.workers import worker

    plan = prepare(request)
    if worker().rank == 0:  # the other processes would print the same
        typer.echo(_description(plan))
    if dry_run:
        typer.echo(_estimate(plan, estimate(plan)))
    else:
        typer.echo(_outcome(plan, annotate(plan)))


def _description(plan: "Plan") -> str:
    """The lines about teacher, corpus and signals."""
    manifest = plan.manifest
    lines = [
        f"teacher  {manifest.teacher.architecture}, {manifest.teacher.parameters:,} parameters, "
        f"{manifest.options.dtype} on {plan.engine.device}",
        f"corpus   {manifest.corpus.in_words()}",
    ]
    lines += [f"signal   {signal.describe()}{manifest.measured_in_words(signal.name)}" for signal in manifest.signals]
    lines += [f"weights  {file.describe(name)}" for name, file in manifest.tensor_files.items()]
    return "\n".join(lines)


def _estimate(plan: "Plan", found: "Estimate") -> str:
    """The table of the dry run: disk and time, estimated from a sample."""
    free = "" if found.free_bytes is None else f"of {human_bytes(found.free_bytes)} free"
    lines = [
        ("rows", f"{found.rows:,}", ""),
        ("tokens", f"{found.tokens:,}", ""),
        ("disk", human_bytes(found.bytes), free),
        ("time", human_seconds(found.seconds), f"at {found.tokens_per_second:,.0f} tokens/s, with one process"),
        ("teacher", human_seconds(found.teacher_seconds), "for each epoch, if a student is trained without a dump"),
        ("reading", human_seconds(found.reading_seconds), "for each epoch, if a student reads the dump"),
        ("pays off", f"{found.epochs_to_break_even:.1f}", "epochs until the dump has cost less than the teacher"),
    ]
    if found.mixed_rows:
        lines.insert(4, ("mixtures", f"{found.mixed_rows:,}", "rows that the teacher reads besides, in this time"))
    if found.truncated_share and plan.manifest.corpus.questions is None:
        lines.append(("cut", f"{found.truncated_share:.1%}", f"of rows reach --max-length {plan.request.max_length}"))
    return "\n".join(
        [
            f"\nEstimate from {found.sampled_rows} rows; nothing was written.",
            *(f"  {name:<9}{value:>15}   {comment}".rstrip() for name, value, comment in lines),
            "\n  bytes a token",
            *(f"  {name:<24}{size:>10.2f}" for name, size in found.signal_bytes.items()),
        ]
    )


def _outcome(plan: "Plan", outcome: "Outcome") -> str:
    """The lines about what this process has written, and about the dump as it is now."""
    from shared.dump.integrity.receipts import finished_receipt, read_receipts
    from shared.dump.manifest import read_manifest

    out = plan.request.folder
    receipts = read_receipts(out, outcome.shards, read_manifest(out).identity, finished_receipt)
    if not outcome.made and len(receipts) == outcome.shards:
        return f"\n{out} is complete already: {outcome.shards} shards, nothing to do."
    if not outcome.made:
        return f"\n{out}: nothing is left for this process; others are at work on the missing shards."
    cut = ""
    if outcome.full_rows and plan.manifest.corpus.questions is None:  # windows of a long context are always full
        cut = (
            f"\n{outcome.full_rows:,} rows have the full --max-length of {plan.request.max_length} tokens and may have "
            "been truncated.\n"
        )
    size = sum(receipt.bytes for receipt in receipts.values())
    return (
        f"{cut}\n{out}: {outcome.made} of {outcome.shards} shards written, {outcome.tokens:,} tokens in "
        f"{human_seconds(outcome.seconds)} ({outcome.tokens / outcome.seconds:,.0f} tokens/s); "
        f"{human_bytes(size)} in all. The teacher was busy "
        f"{outcome.teacher_seconds / outcome.seconds:.0%} of the time.\nLook inside: shards head {out}"
    )


def main() -> None:
    """Entry point of the console script."""
    run(app, several=("--data",))


if __name__ == "__main__":
    main()
