"""Recorded positions as polars frames, decoded with expressions, so that a dump larger than memory can be streamed."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import polars as pl

from shared.dump.codecs import DistributionCodec


class Recorded(Protocol):
    """The part of `Dump` that layouts use."""

    def scan(self) -> pl.LazyFrame:
        """Return the raw columns, with one row per sequence."""

    @property
    def distribution(self) -> DistributionCodec:
        """The codec of the distribution."""

    @property
    def labelled(self) -> bool:
        """Whether the dump has gold labels."""

    @property
    def token_texts(self) -> Sequence[str]:
        """The text of each token id."""

    @property
    def class_texts(self) -> Sequence[str]:
        """The name of each class of a distribution: label names, or the texts of the tokens."""


def decoded(dump: Recorded, per_position: Mapping[str, pl.Expr]) -> pl.LazyFrame:
    """Return one row per distribution: row, position, token_id, token, label, ids, texts, log_probs, exact, tail,
    entropy.

    `per_position` has expressions of lists for some of `position`, `token_id` and `label`; the others are null.
    """
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
    # A column, because polars would evaluate the expression again for each of the columns that use it.
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
    """Return the names of ids; null for ids without a name."""
    return ids.replace_strict(range(len(names)), names, default=None, return_dtype=pl.String)


def first_choice() -> pl.Expr:
    """Return the most probable id of each row of `decoded`, among the ids with known probability if there are any."""
    return pl.col("ids").list.get(_known_log_probs().list.arg_max())


def first_log_prob() -> pl.Expr:
    """Return the log-probability of `first_choice`."""
    return _known_log_probs().list.max()


def _known_log_probs() -> pl.Expr:
    # If all ids are drawn, the first is the one drawn most often.
    return pl.col("log_probs").list.head(pl.max_horizontal("exact", pl.lit(1, dtype=pl.UInt32)))
