"""Dumps of questions for people: a row has two distributions over its recorded positions, start and end of the answer.

Everything is an expression over lists, one row of the dump at a time, so that a dump larger than memory streams.
"""

import math
from collections.abc import Iterator

import polars as pl

from shared.dump.codecs import DistributionCodec

ENDPOINTS = ("start", "end")
# What is added to a gold label at the position where the answer starts, and where it ends.
MARKS = {"start": 1, "end": 2}


def span_lists(raw: pl.LazyFrame, codec: DistributionCodec, has_gold: bool) -> pl.LazyFrame:
    """One row a window: row, question, and lists over its recorded positions: position, token_id, label, start_logit,
    end_logit, start_log_prob, end_log_prob."""
    column = codec.columns[0]
    pairs = pl.element().bin.reinterpret(dtype=pl.Array(pl.Float32, 2))
    no_labels = pl.col("positions").list.eval(pl.lit(None, dtype=pl.Int32).repeat_by(pl.len()).explode())
    frame = raw.select(
        "row",
        "question",
        pl.col("positions").alias("position"),
        pl.col("input_ids").list.gather(pl.col("positions")).alias("token_id"),
        (pl.col("labels") if has_gold else no_labels).alias("label"),
        *(
            pl.col(column.name).list.eval(pairs.arr.get(index)).alias(f"{name}_logit")
            for index, name in enumerate(ENDPOINTS)
        ),
    )
    value = pl.element().cast(pl.Float64)
    shifted = value - value.max()
    log_prob = shifted - shifted.exp().sum().log()
    return frame.with_columns(
        pl.col(f"{name}_logit").list.eval(log_prob).alias(f"{name}_log_prob") for name in ENDPOINTS
    )


def span_certainty(lists: pl.LazyFrame) -> pl.LazyFrame:
    """Entropy (nats) and top-1 probability of every distribution, two a row."""
    value = pl.element()
    entropy = (value.exp() * -value).filter(value > -float("inf")).sum()
    both = [
        pl.concat_list(pl.col(f"{name}_log_prob").list.eval(expr).list.first() for name in ENDPOINTS).alias(alias)
        for expr, alias in ((entropy, "entropy"), (value.max().exp(), "top-1 probability"))
    ]
    return lists.select(both).explode("entropy", "top-1 probability")


def span_accuracy(lists: pl.LazyFrame) -> tuple[float, int] | None:
    """(how often the teacher's first choice is the gold start or end, of how many), None where nothing is labelled."""
    labelled = lists.filter(pl.col("label").list.first().is_not_null())
    right = [
        pl.col(f"{name}_logit").list.arg_max() == pl.col("label").list.eval(_is_gold(name)).list.arg_max()
        for name in ENDPOINTS
    ]
    share, rows = labelled.select(pl.mean_horizontal(right).mean(), pl.len().alias("rows")).collect().row(0)
    return (share, len(ENDPOINTS) * rows) if rows else None


def readable_spans(row: dict[str, list[float]], texts: list[str], candidates: int) -> Iterator[str]:
    """A row of `span_lists` and the texts of its positions' tokens -> lines: for start and end the gold position and
    the teacher's most probable ones."""
    for name in ENDPOINTS:
        gold = [at for at, label in enumerate(row["label"]) if label is not None and int(label) & MARKS[name]]
        best = sorted(zip(row[f"{name}_log_prob"], range(len(texts)), strict=True), reverse=True)[:candidates]
        said = ", ".join(f"{texts[at]} (at {row['position'][at]}) {math.exp(value):.3f}" for value, at in best)
        where = f"{texts[gold[0]]} (at {row['position'][gold[0]]})" if gold else "-"
        yield f"  {name:<6} gold: {where}   teacher: {said}"


def _is_gold(name: str) -> pl.Expr:
    mark = MARKS[name]
    return (pl.element() // mark % 2).cast(pl.Int8)
