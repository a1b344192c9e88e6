"""What the tests of distribution codecs share: logits and keys from seeds, and the way through a codec as a shard goes.

Shapes: N positions, V vocabulary or classes.
"""

from typing import Any

import numpy as np
import polars as pl
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from shared.dump.codecs import (
    DistributionCodec,
    Draws,
    Selection,
    Sparse,
    Threshold,
    TopK,
    TopP,
    counts_of,
    position_keys,
)
from shared.dump.rowgroup import from_flat, to_flat

# Each of a codec's columns by its name: an array, or `Lists`.
Columns = dict[str, Any]

seeds = st.integers(0, 2**31)
offsets = st.sampled_from([0.0, -50.0, 1e3, -3e4, 1e6])
scales = st.sampled_from([0.0, 1e-3, 1.0, 8.0, 60.0])
quick = settings(max_examples=60)
thorough = settings(max_examples=250)

EVERY_RULE: tuple[Selection, ...] = (
    TopK(k=7),
    TopP(p=0.8, k=9),
    Threshold(threshold=0.03),
    Threshold(threshold=0.03, tail="mass"),
    Draws(draws=20),
)
EXACT_RULES = EVERY_RULE[:-1]


def random_logits(seed: int, positions: int, classes: int, scale: float = 2.0, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(positions, classes, generator=generator) * scale + offset


def keys_of(positions: int, seed: int = 0) -> Tensor:
    return position_keys(seed, torch.arange(positions), torch.zeros(positions, dtype=torch.int64))


def stored(codec: DistributionCodec, logits_NV: Tensor, keys_N: Tensor | None = None) -> Columns:
    """The columns as a shard keeps them: numpy, exactly of the type and width that the codec declares."""
    encoded = codec.encode(logits_NV, keys_of(len(logits_NV)) if keys_N is None else keys_N)
    lists = {counts_of(column.name) for column in codec.columns if column.is_list}
    assert set(encoded) == {column.name for column in codec.columns} | lists
    flat = {name: tensor.numpy() for name, tensor in encoded.items()}
    for column in codec.columns:
        assert flat[column.name].dtype == column.dtype
        assert not column.is_list or (flat[column.name] >= 0).all(), "any reader may divide an entry"
        if not column.is_list:
            assert flat[column.name].shape == (len(logits_NV),) + (() if column.width == 1 else (column.width,))
    return from_flat(codec.columns, flat)


def decoded(codec: DistributionCodec, columns: Columns) -> Any:
    return codec.decode({name: torch.from_numpy(array.copy()) for name, array in to_flat(columns).items()})


def round_trip(codec: DistributionCodec, logits_NV: Tensor, keys_N: Tensor | None = None) -> Any:
    return decoded(codec, stored(codec, logits_NV, keys_N))


def frame(codec: DistributionCodec, columns: Columns) -> pl.DataFrame:
    """The columns as polars sees them in a shard: one number, one list or one binary a position."""
    series = {}
    for column in codec.columns:
        values = columns[column.name]
        if column.is_list:
            rows = [values[index : index + 1].values.tolist() for index in range(len(values))]
            series[column.name] = pl.Series(rows, dtype=pl.List({"int32": pl.Int32, "int64": pl.Int64}[column.dtype]))
        elif column.width == 1:
            series[column.name] = pl.Series(values)
        else:
            series[column.name] = pl.Series([np.ascontiguousarray(row).tobytes() for row in values], dtype=pl.Binary)
    return pl.DataFrame(series)


def seen_by_polars(codec: DistributionCodec, raw: pl.DataFrame) -> list[tuple[list[int], list[float], float]]:
    """(ids, log-probabilities, tail) of each position."""
    seen = raw.select(ids=codec.ids_expr(), log_probs=codec.log_probs_expr(), tail=codec.tail_expr())
    assert seen.schema == {"ids": pl.List(pl.Int64), "log_probs": pl.List(pl.Float64), "tail": pl.Float64}
    return seen.rows()


@st.composite
def rules(draw: st.DrawFn, vocabulary: int) -> Selection:
    k = draw(st.integers(1, vocabulary + 2))
    choices: list[Selection] = [
        TopK(k=k),
        TopP(p=draw(st.sampled_from([1e-6, 0.3, 0.9, 0.999, 1.0])), k=k),
        Threshold(
            threshold=draw(st.sampled_from([1e-3, 0.02, 0.1, 0.5, 0.99])),
            tail=draw(st.sampled_from(["sample", "mass"])),
        ),
        Draws(draws=draw(st.sampled_from([1, 2, 50, 255]))),
    ]
    return draw(st.sampled_from(choices))


@st.composite
def codecs(draw: st.DrawFn, vocabulary: int) -> Sparse:
    selection = draw(rules(vocabulary))
    return Sparse(
        name="d",
        selection=selection,
        in_planes=isinstance(selection, TopK) and draw(st.booleans()),
        vocabulary=vocabulary,
        levels=draw(st.sampled_from([8, 130, 250, 251, 4000, 65_000])),
        temperatures=draw(st.sampled_from([(), (2.0,), (0.5, 2.0, 4.0)])),
    )
