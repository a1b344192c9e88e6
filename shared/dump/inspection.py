"""What is in a dump, for people: facts, readable rows, and distributions of what matters for training."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from shared.dump.codecs import Dense
from shared.dump.dump import Dump
from shared.dump.spans import readable_spans, span_accuracy, span_certainty
from shared.errors import UsageError
from shared.progress import human_bytes

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Spread:
    """A quantity over rows or positions: its mean and its QUANTILES."""

    name: str
    count: int
    mean: float
    quantiles: tuple[float, ...]


def facts(dump: Dump) -> list[tuple[str, str]]:
    """(name, value) of what the manifest and the receipts say."""
    manifest, receipts = dump.manifest, dump.receipts.values()
    rows, tokens = sum(receipt.rows for receipt in receipts), sum(receipt.tokens for receipt in receipts)
    size = sum(receipt.bytes for receipt in receipts)
    teacher, options = manifest.teacher, manifest.options
    lines = [
        ("task", manifest.task),
        ("teacher", f"{teacher.name} ({teacher.architecture}, {teacher.parameters:,} parameters, {options.dtype})"),
        ("shards", f"{len(dump.receipts)} of {manifest.shards} finished, {options.shard_rows:,} rows each"),
        ("rows", f"{rows:,} of {manifest.corpus.rows:,}"),
        ("tokens", f"{tokens:,} ({tokens / max(rows, 1):.1f} a row, at most {options.max_length})"),
        ("positions", f"{sum(receipt.positions for receipt in receipts):,} with a distribution"),
        ("size", f"{human_bytes(size)}, {size / max(tokens, 1):.1f} bytes a token"),
        ("vocabulary", f"{manifest.vocabulary:,} (tokenizer: {manifest.tokenizer.size:,})"),
    ]
    if manifest.corpus.questions is not None:
        overlap = f"windows of their contexts overlap by {options.stride} tokens"
        lines.append(
            ("questions", f"{manifest.corpus.questions:,} rows of the files, each one row or more here; {overlap}")
        )
    if manifest.label_names is not None:
        lines.append(("labels", ", ".join(manifest.label_names)))
        lines.append(("gold labels", f"in {manifest.corpus.labelled_rows:,} of {manifest.corpus.rows:,} rows"))
    signals = (("signal", signal.describe() + manifest.measured_in_words(signal.name)) for signal in manifest.signals)
    kept = [("embeddings", manifest.embeddings.describe())] if manifest.embeddings else []
    return [*lines, *signals, *kept]


def readable_rows(dump: Dump, count: int, candidates: int, most_positions: int) -> Iterator[str]:
    """The first rows of the corpus as text: tokens, and at each recorded position the most probable candidates."""
    raw = dump.scan().select("row", "input_ids").filter(pl.col("row") < count).sort("row").collect()
    recorded = None
    if dump.manifest.recorded == "spans":
        yield from _readable_windows(dump, count, candidates)
        return
    if dump.manifest.distribution is not None:
        recorded = dump.positions().filter(pl.col("row") < count).collect()
    for number, ids in raw.iter_rows():
        yield f"row {number} · {len(ids)} tokens"
        yield f"  {' '.join(_token(dump, index) for index in ids[:60])}{' ...' if len(ids) > 60 else ''}"
        if recorded is not None:
            mine = recorded.filter(pl.col("row") == number).sort("position")
            yield from _readable_positions(dump, mine, candidates, most_positions)
        yield ""


def _readable_windows(dump: Dump, count: int, candidates: int) -> Iterator[str]:
    raw = dump.scan().select("row", "input_ids").filter(pl.col("row") < count).sort("row").collect()
    spans = dump.spans().filter(pl.col("row") < count).sort("row").collect()
    for ids, row in zip(raw["input_ids"], spans.iter_rows(named=True), strict=True):
        yield f"row {row['row']} · a window of question {row['question']} · {len(ids)} tokens"
        yield f"  {' '.join(_token(dump, index) for index in ids[:60])}{' ...' if len(ids) > 60 else ''}"
        yield from readable_spans(row, [_token(dump, index) for index in row["token_id"]], candidates)
        yield ""


def _readable_positions(dump: Dump, frame: pl.DataFrame, candidates: int, most_positions: int) -> Iterator[str]:
    names = dump.manifest.label_names
    per_row = dump.manifest.recorded == "row"
    next_token = dump.manifest.recorded in ("next-token", "listed-next-token")
    if not per_row and len(frame):
        gold = "next" if next_token else "gold"
        yield f"  {'at':>4}  {'token':<16}  {gold:<16}  {'outside':>7}  candidates and their probabilities"
    for position in frame.head(most_positions).iter_rows(named=True):
        kept = list(zip(position["log_probs"], position["ids"], strict=True))
        # The others were sampled: what they weigh is not their probability.
        ranked = sorted(kept[: position["exact"]], reverse=True)[:candidates]
        texts = (f"{names[index] if names else _token(dump, index)} {_probability(value)}" for value, index in ranked)
        label = position["label"]
        gold = "-" if label is None else names[label] if names else _token(dump, label)
        if per_row:
            yield f"  gold: {gold}   teacher: {', '.join(texts)}"
        else:
            outside = _probability(position["tail"])
            where = f"{position['position']:>4}  {position['token'] or '':<16}"
            yield f"  {where}  {gold:<16}  {outside:>7}  {', '.join(texts)}"
    if len(frame) > most_positions:
        yield f"  ... and {len(frame) - most_positions} more positions"


def spreads(dump: Dump) -> list[Spread]:
    """Lengths of rows; entropy (nats), top-1 probability and kept mass at recorded positions.

    Where ids were cut off, the entropy is a lower bound (see `Dump.positions`).
    """
    return [spread for frame in _quantities(dump) for spread in _spreads(frame)]


def teacher_accuracy(dump: Dump) -> tuple[float, int] | None:
    """(how often the teacher's first choice is the gold label, over how many labelled positions), None without any."""
    if dump.manifest.distribution is None or dump.manifest.gold == "none":
        return None
    if dump.manifest.recorded == "spans":
        return span_accuracy(dump.spans())
    by_class = isinstance(dump.manifest.distribution, Dense)
    best = pl.col("ids").list.get(pl.col("log_probs").list.arg_max()) if by_class else pl.col("ids").list.first()
    frame = dump.positions().filter(pl.col("label").is_not_null())
    share, count = frame.select((best == pl.col("label")).mean(), pl.len().alias("n")).collect().row(0)
    return (share, count) if count else None


def plot(dump: Dump, file: Path) -> None:
    """Histograms of the quantities of `spreads` as a PNG. Raises UsageError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UsageError("plots need matplotlib: pip install 'lectern[plot]'.") from None
    series = {column.name: column.to_numpy() for frame in _quantities(dump) for column in frame.collect()}
    figure = Figure(figsize=(4.2 * len(series), 3.4), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(series), squeeze=False)[0], series.items(), strict=True):
        unit = " (nats)" if name == "entropy" else ""
        # Whole numbers get bars of whole numbers, so that none stays empty for want of a value.
        first, last = int(values.min()), int(values.max())
        step = 1 + (last - first) // 40
        edges = np.arange(first - 0.5, last + 0.5 + step, step) if name == "tokens a row" else 40
        axes.hist(values, bins=edges, color="#3b6ea5")
        axes.set(xlabel=f"{name}{unit}", ylabel="rows" if name == "tokens a row" else "positions")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{dump.path.name}: {dump.manifest.task}, {dump.manifest.corpus.rows:,} rows")
    figure.savefig(file, dpi=130)


def _quantities(dump: Dump) -> list[pl.LazyFrame]:
    """A frame with one row a row of the corpus, and where there is a distribution one with a row a position."""
    lengths = dump.scan().select(pl.col("input_ids").list.len().alias("tokens a row"))
    if dump.manifest.distribution is None:
        return [lengths]
    if dump.manifest.recorded == "spans":
        return [lengths, span_certainty(dump.spans())]
    by_class = isinstance(dump.manifest.distribution, Dense)
    best = pl.col("log_probs").list.max() if by_class else pl.col("log_probs").list.first()
    certainty = dump.positions().select(
        "entropy", best.exp().alias("top-1 probability"), (1 - pl.col("tail").exp()).alias("kept mass")
    )
    return [lengths, certainty]


def _spreads(frame: pl.LazyFrame) -> list[Spread]:
    """The spread of each column, all in one pass."""
    names = frame.collect_schema().names()
    statistics = [[pl.col(name).mean(), *(pl.col(name).quantile(q) for q in QUANTILES)] for name in names]
    flat = [expr.alias(str(index)) for index, expr in enumerate(expr for group in statistics for expr in group)]
    count, *values = frame.select(pl.len().alias("count"), *flat).collect().row(0)
    numbers = [math.nan if value is None else float(value) for value in values]
    width = 1 + len(QUANTILES)
    starts = range(0, len(numbers), width)
    return [
        Spread(name, count, numbers[start], tuple(numbers[start + 1 : start + width]))
        for name, start in zip(names, starts, strict=True)
    ]


def _token(dump: Dump, index: int) -> str:
    texts = dump.token_texts
    return texts[index].replace("\n", "\\n") if index < len(texts) else f"<{index}>"


def _probability(log_probability: float) -> str:
    probability = math.exp(log_probability)
    return f"{probability:.3f}" if probability >= 0.0005 or probability == 0 else "<0.001"
