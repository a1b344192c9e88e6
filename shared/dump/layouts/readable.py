"""Recorded positions of a row as lines of text."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from shared.dump.layouts.frames import Recorded
from shared.printable import on_one_line


def position_lines(
    dump: Recorded, positions: pl.DataFrame, candidates: int, most_positions: int, gold_title: str
) -> Iterator[str]:
    """Yield the lines of a table of positions (a frame with the columns of `frames.decoded`): the token, the gold
    label with `gold_title` as its header, and the most probable candidates."""
    if len(positions):
        yield f"  {'at':>4}  {'token':<16}  {gold_title:<16}  {'outside':>7}  candidates and their probabilities"
    for position in positions.head(most_positions).iter_rows(named=True):
        gold, found = gold_and_candidates(dump, position, candidates)
        where = f"{position['position']:>4}  {on_one_line(position['token'] or ''):<16}"
        yield f"  {where}  {gold:<16}  {_probability(position['tail']):>7}  {found}"
    if len(positions) > most_positions:
        yield f"  ... and {len(positions) - most_positions} more positions"


def gold_and_candidates(dump: Recorded, position: dict[str, Any], candidates: int) -> tuple[str, str]:
    """Return (gold label, most probable candidates with their probabilities) of a row of `frames.decoded`, as text."""
    kept = list(zip(position["log_probs"], position["ids"], strict=True))
    # The others were sampled, and their weight is not their probability.
    ranked = sorted(kept[: position["exact"]], reverse=True)[:candidates]
    texts = (f"{text_of(dump.class_texts, index)} {_probability(value)}" for value, index in ranked)
    label = position["label"]
    return "-" if label is None else text_of(dump.class_texts, label), ", ".join(texts)


def text_of(texts: Sequence[str], index: int) -> str:
    """Return the name of a token or class, on one line."""
    return on_one_line(texts[index]) if index < len(texts) else f"<{index}>"


def _probability(log_probability: float) -> str:
    probability = math.exp(log_probability)
    return f"{probability:.3f}" if probability >= 0.0005 or probability == 0 else "<0.001"
