"""The command line `dump`."""

from pathlib import Path
from typing import Annotated

import typer

from shared.cli import EPILOG, run
from shared.options import ContextColumn, ImpossibleColumn, PairColumn, QuestionColumn, TextColumn, TokensColumn
from shared.progress import human_bytes, human_seconds
from shared.text.tokenized import DEFAULT_STRIDE
from teacher_dump.request import MOST_TOP_P_IDS, Request

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def _tokens_or_auto(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number from 1")
    return int(text)


@app.command(epilog=EPILOG)
def dump(
    teacher: Annotated[str, typer.Option(help="A model's folder, or a hub id.")],
    task: Annotated[
        str,
        typer.Option(
            help="causal-lm, masked-lm, sequence-classification, token-classification, question-answering or encoder."
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="FILE...",
            help="A file, glob or URL of text: .txt, .jsonl, .json, .csv, .tsv, .parquet, also .gz or .zst. "
            "Any number of them.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The dump's folder. The same command again finishes what is missing.")],
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    messages_column: Annotated[
        str | None,
        typer.Option(
            help="Column of chats in place of texts (causal-lm): lists of messages with a role and a content, which "
            "the teacher's own chat template renders.",
            show_default=False,
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            help="Column of gold labels, which may be missing in any row. By default 'label' where there "
            "is one; 'none' ignores it.",
            show_default=False,
        ),
    ] = None,
    tokens_column: TokensColumn = "tokens",
    tags_column: Annotated[
        str | None,
        typer.Option(
            help="Column of tag lists, one tag a word. By default 'tags' where there is one; 'none' ignores it.",
            show_default=False,
        ),
    ] = None,
    question_column: QuestionColumn = "question",
    context_column: ContextColumn = "context",
    answers_column: Annotated[
        str | None,
        typer.Option(
            help="Column of lists of gold answers, empty where there is none. By default 'answer_texts' where there is "
            "one; 'none' ignores it.",
            show_default=False,
        ),
    ] = None,
    starts_column: Annotated[
        str, typer.Option(help="Column of lists: at which character of the context each answer begins.")
    ] = "answer_starts",
    impossible_column: ImpossibleColumn = "is_impossible",
    preset: Annotated[
        str | None,
        typer.Option(
            help="How much to keep of a vocabulary's distributions: tiny, compact, default, rich or near-lossless.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Keep every class more probable than this, and see --tail for the rest.", show_default=False),
    ] = None,
    tail: Annotated[
        str | None,
        typer.Option(
            help="What stands for classes below the threshold: sample (some of them, drawn so that nothing is biased; "
            "the default) or mass (their sum).",
            show_default=False,
        ),
    ] = None,
    bytes_per_token: Annotated[
        float | None,
        typer.Option(help="Find the threshold that takes so many bytes a recorded position.", show_default=False),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Keep the k most probable classes, and the mass of the rest.", show_default=False),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help=f"Keep the most probable classes that together reach p, at most --top-k (default {MOST_TOP_P_IDS}) of "
            "them.",
            show_default=False,
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(help="Keep so many random draws with replacement (at most 255).", show_default=False),
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Keep all logits (4 bytes a class and position). Default for labels.")
    ] = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Keep all of a vocabulary's logits, as the last hidden state and the teacher's head, once."
        ),
    ] = False,
    exact_codec: Annotated[
        str, typer.Option(help="How --exact keeps last hidden states: float16, int8 or int4.")
    ] = "float16",
    levels: Annotated[
        int | None,
        typer.Option(
            help="Steps in which a probability p is kept, even in p ** 0.4; above 250 a code takes two bytes. Default: "
            "the preset's; 64 with --bytes-per-token; 130 elsewhere.",
            show_default=False,
        ),
    ] = None,
    temperatures: Annotated[
        str | None,
        typer.Option(
            help="Also keep the log-sum-exp at these temperatures, as in 2,4 (2 bytes each): KL there, the rest as "
            "one class, is exact.",
            show_default=False,
        ),
    ] = None,
    entropy: Annotated[
        bool, typer.Option("--entropy", help="Also keep the entropy of the whole distribution (2 bytes).")
    ] = False,
    positions: Annotated[
        str | None,
        typer.Option(
            help="Where distributions are recorded. causal-lm: all (default) or completion (of chats: where the "
            "assistant's next token follows); masked-lm: masked (default) or all; token-classification: "
            "first-subtoken (default) or all.",
            show_default=False,
        ),
    ] = None,
    hidden: Annotated[
        str,
        typer.Option(
            help="Hidden states to keep: none, last, all, or layers such as 6,12. They count as in "
            "transformers: 0 is the embeddings' output."
        ),
    ] = "none",
    hidden_codec: Annotated[
        str, typer.Option(help="How hidden states (and --relations) are kept: float16, int8 or int4.")
    ] = "float16",
    hidden_rank: Annotated[
        int | None,
        typer.Option(
            help="Keep only so many coefficients of a hidden state, in the basis that loses least of a sample.",
            show_default=False,
        ),
    ] = None,
    relations: Annotated[
        str,
        typer.Option(
            help="Layers whose queries, keys and values are kept, for attention relations: none, last, all, or 5,6."
        ),
    ] = "none",
    embeddings: Annotated[
        bool,
        typer.Option(
            "--embeddings",
            help="Also keep the teacher's input word embeddings, once, for students that begin from them (2 bytes a "
            "number).",
        ),
    ] = False,
    max_length: Annotated[int, typer.Option(min=1, help="Rows are cut to this many tokens.")] = 512,
    stride: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tokens by which the windows of a long context overlap (question-answering; at most half a window).",
        ),
    ] = DEFAULT_STRIDE,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            parser=_tokens_or_auto,
            metavar="N|auto",
            help="Tokens a batch. auto: 2048 on a CPU, on CUDA what its memory holds. Halved where memory runs out.",
            show_default="auto",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16. auto: bf16 on CUDA, fp32 on a CPU.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    device_map: Annotated[
        str,
        typer.Option(
            help="auto spreads the teacher over all devices, the CPU last; done by itself where one GPU is too small."
        ),
    ] = "none",
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows a shard: the unit of work that a kill can cost.")] = 4096,
    compression: Annotated[
        str,
        typer.Option(
            help="Of shards: zstd, lz4 or none. The larger they are, the less of a processor reading takes. Vectors "
            "are never compressed."
        ),
    ] = "zstd",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything drawn at random (masked positions, ids).")] = 0,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.", show_default=False)] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the teacher. Off unless asked for.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure a sample, print rows, tokens, bytes and time, write nothing.")
    ] = False,
) -> None:
    """Run a teacher once over a corpus and keep what students learn from, in Parquet shards.

    Example: dump --teacher models/teacher --task sequence-classification --data reviews.jsonl --out out/dump
    """
    # Imported here so that --help does not wait for torch.
    from teacher_dump.annotate import annotate, prepare
    from teacher_dump.estimate import estimate
    from teacher_dump.workers import worker

    options = {name: value for name, value in locals().items() if name in Request.__dataclass_fields__}
    plan = prepare(Request(**{**options, "data": tuple(data)}))
    manifest = plan.manifest
    signals = [f"signal   {signal.describe()}{manifest.measured_in_words(signal.name)}" for signal in manifest.signals]
    if manifest.embeddings is not None:
        signals.append(f"weights  {manifest.embeddings.describe()}")
    if worker().rank == 0:  # the others would say the same
        typer.echo(
            f"teacher  {manifest.teacher.architecture}, {manifest.teacher.parameters:,} parameters, "
            f"{manifest.options.dtype} on {plan.teacher.device}\n"
            f"corpus   {manifest.corpus.in_words()}\n" + "\n".join(signals)
        )
    if dry_run:
        found = estimate(plan)
        typer.echo(f"\nEstimate from {found.sampled_rows} rows; nothing was written.")
        lines = [
            ("rows", f"{found.rows:,}", ""),
            ("tokens", f"{found.tokens:,}", ""),
            ("disk", human_bytes(found.bytes), f"of {human_bytes(found.free_bytes)} free"),
            ("time", human_seconds(found.seconds), f"at {found.tokens_per_second:,.0f} tokens/s, this process alone"),
            ("teacher", human_seconds(found.teacher_seconds), "for each epoch of a student, if it ran beside it"),
            ("reading", human_seconds(found.reading_seconds), "for each epoch from the dump instead"),
            ("pays off", f"{found.epochs_to_break_even:.1f}", "epochs until the dump was the cheaper way"),
        ]
        if found.truncated_share and manifest.corpus.questions is None:
            lines.append(("cut", f"{found.truncated_share:.1%}", f"of rows reach --max-length {max_length}"))
        for name, value, comment in lines:
            typer.echo(f"  {name:<9}{value:>15}   {comment}".rstrip())
        typer.echo("\n  bytes a token")
        for name, size in found.signal_bytes.items():
            typer.echo(f"  {name:<24}{size:>10.2f}")
        return
    outcome = annotate(plan)
    if not outcome.made:
        typer.echo(f"\n{out} is complete already: {outcome.shards} shards, nothing to do.")
        return
    if outcome.full_rows and manifest.corpus.questions is None:  # windows are full where contexts are long
        typer.echo(
            f"\n{outcome.full_rows:,} rows have the full --max-length of {max_length} tokens and may have been cut."
        )
    size = sum(path.stat().st_size for path in (out / "shards").glob("*.parquet"))
    typer.echo(
        f"\n{out}: {outcome.made} of {outcome.shards} shards written, {outcome.tokens:,} tokens in "
        f"{human_seconds(outcome.seconds)} ({outcome.tokens / outcome.seconds:,.0f} tokens/s); "
        f"{human_bytes(size)} in all. The teacher was at work "
        f"{outcome.teacher_seconds / outcome.seconds:.0%} of the time.\nLook inside: shards head {out}"
    )


def main() -> None:
    """Entry point of the console script."""
    run(app, several=("--data",))


if __name__ == "__main__":
    main()
