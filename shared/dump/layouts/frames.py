"""Recorded positions as polars sees them: decoded by expressions, so that a dump larger than memory streams."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import polars as pl

from shared.dump.codecs import DistributionCodec


class Recorded(Protocol):
    """What a layout reads of a dump (`Dump` is one)."""

    def scan(self) -> pl.LazyFrame:
        """The raw columns, one row a sequence."""

    @property
    def distribution(self) -> DistributionCodec:
        """The codec of the distribution."""

    @property
    def labelled(self) -> bool:
        """Whether there are gold labels."""

    @property
    def token_texts(self) -> Sequence[str]:
        """The text of each token id."""

    @property
    def class_texts(self) -> Sequence[str]:
        """What each class of a distribution is called: label names, or the texts of the tokens."""


def decoded(dump: Recorded, per_position: Mapping[str, pl.Expr]) -> pl.LazyFrame:
    """One row a distribution, from lists of `position`, `token_id` and `label` as far as there are such: row, position,
    token_id, token, label, ids, texts, log_probs, exact, tail, entropy."""
    codec = dump.distribution
    raw = [column.name for column in codec.columns]
    frame = (
        dump.scan()
        .select("row", *(expr.alias(name) for name, expr in per_position.items()), *raw)
        .filter(pl.col(raw[0]).list.len() > 0)
        .explode(*per_position, *raw)
    )
    missing = [name for name in ("position", "token_id", "label") if name not in per_position]
    frame = frame.with_columns(pl.lit(None, dtype=pl.Int32).alias(name) for name in missing)
    # polars would evaluate it anew for each of the columns that need it.
    frame = frame.with_columns(codec.ranked_expr().alias("ranked"))
    frame = frame.select(
        "row",
        "position",
        "token_id",
        texts_of(pl.col("token_id"), dump.token_texts).alias("token"),
        "label",
        codec.ids_expr(pl.col("ranked")).alias("ids"),
        codec.log_probs_expr(pl.col("ranked")).alias("log_probs"),
        codec.exact_expr(pl.col("ranked")).alias("exact"),
        codec.tail_expr(pl.col("ranked")).alias("tail"),
        "ranked",
        *raw,
    )
    texts = pl.col("ids").list.eval(texts_of(pl.element(), dump.class_texts)).alias("texts")
    before_texts = ("row", "position", "token_id", "token", "label", "ids")
    entropy = codec.entropy_expr(pl.col("ranked")).alias("entropy")
    return frame.select(*before_texts, texts, "log_probs", "exact", "tail", entropy)


def texts_of(ids: pl.Expr, names: Sequence[str]) -> pl.Expr:
    """Ids as what they are called, null for those beyond the names."""
    return ids.replace_strict(range(len(names)), names, default=None, return_dtype=pl.String)


def first_choice() -> pl.Expr:
    """The most probable id of each row of `decoded`: of those whose probability is known, if there are any."""
    return pl.col("ids").list.get(_known_log_probs().list.arg_max())


def first_log_prob() -> pl.Expr:
    """Its log-probability."""
    return _known_log_probs().list.max()


def _known_log_probs() -> pl.Expr:
    # Where all are drawn, the first is the one drawn most often.
    return pl.col("log_probs").list.head(pl.max_horizontal("exact", pl.lit(1, dtype=pl.UInt32)))
