"""Inspection of a dump: facts, readable rows, and statistics that matter for training."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from shared.dump.dump import Dump
from shared.dump.layouts.readable import text_of
from shared.plotting import figure_type
from shared.progress import human_bytes

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Spread:
    """The distribution of a quantity over rows or positions: its mean and QUANTILES."""

    name: str
    count: int
    mean: float
    quantiles: tuple[float, ...]


def facts(dump: Dump) -> list[tuple[str, str]]:
    """Return (name, value) of the facts in the manifest and the receipts."""
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
    kept = [("weights", file.describe(name)) for name, file in manifest.tensor_files.items()]
    return [*lines, *signals, *kept]


def readable_rows(dump: Dump, count: int, candidates: int, most_positions: int) -> Iterator[str]:
    """Yield the first rows of the corpus as lines of text: tokens, and the most probable candidates at each recorded
    position."""
    raw = dump.scan().select("row", "input_ids").filter(pl.col("row") < count).sort("row").collect()
    layout, recorded = dump.manifest.layout, None
    if dump.manifest.distribution is not None:
        recorded = dump.positions().filter(pl.col("row") < count).collect()
    for number, ids in raw.iter_rows():
        tokens = " ".join(text_of(dump.token_texts, index) for index in ids[:60])
        mine = None if recorded is None else recorded.filter(pl.col("row") == number).sort("position")
        yield f"row {number}{'' if mine is None else layout.title(mine)} · {len(ids)} tokens"
        yield f"  {tokens}{' ...' if len(ids) > 60 else ''}"
        if mine is not None:
            yield from layout.lines(dump, mine, candidates, most_positions)
        yield ""


def spreads(dump: Dump) -> list[Spread]:
    """Return the spreads of row lengths, and of entropy (nats), top-1 probability and kept mass at recorded positions.

    If not all ids are kept, the entropy is a lower bound (see `Dump.positions`).
    """
    return [spread for frame in _quantities(dump) for spread in _spreads(frame)]


def teacher_accuracy(dump: Dump) -> tuple[float, int] | None:
    """Return (share of labels that are the teacher's first choice, number of labels); None without gold labels."""
    if dump.manifest.distribution is None or not dump.labelled:
        return None
    return dump.manifest.layout.accuracy(dump)


def plot(dump: Dump, file: Path) -> None:
    """Write histograms of the quantities of `spreads` as a PNG. Raises UsageError if matplotlib is not installed."""
    new_figure = figure_type()
    series = {column.name: column.to_numpy() for frame in _quantities(dump) for column in frame.collect()}
    figure = new_figure(figsize=(4.2 * len(series), 3.4), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(series), squeeze=False)[0], series.items(), strict=True):
        unit = " (nats)" if name == "entropy" else ""
        # Bars of an integer quantity are a whole number of values wide, so that no bar is empty between them.
        first, last = int(values.min()), int(values.max())
        step = 1 + (last - first) // 40
        edges = np.arange(first - 0.5, last + 0.5 + step, step) if name == "tokens a row" else 40
        axes.hist(values, bins=edges, color="#3b6ea5")
        axes.set(xlabel=f"{name}{unit}", ylabel="rows" if name == "tokens a row" else "positions")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{dump.path.name}: {dump.manifest.task}, {dump.manifest.corpus.rows:,} rows")
    figure.savefig(file, dpi=130)


def _quantities(dump: Dump) -> list[pl.LazyFrame]:
    """Return a frame with one row per row of the corpus, one with one row per distribution, and one with one row per
    mixture of rows; the latter two if there are any."""
    found = [dump.scan().select(pl.col("input_ids").list.len().alias("tokens a row"))]
    if dump.manifest.distribution is not None:
        found.append(dump.manifest.layout.certainty(dump))
    if dump.manifest.mixtures is not None:
        exponentials = pl.col("logits").list.eval((pl.element() - pl.element().max()).exp())
        top_1 = 1 / exponentials.list.sum()
        found.append(dump.mixtures().select(pl.col("lambda").alias("mixed: lambda"), top_1.alias("mixed: top-1")))
    return found


def _spreads(frame: pl.LazyFrame) -> list[Spread]:
    """Return the spread of each column, computed in one pass."""
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
