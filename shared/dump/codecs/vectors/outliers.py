"""Outlier channels: the few channels of a hidden state that are far larger than the others, in every vector or in some.

Transformers have them (Dettmers et al., LLM.int8, 2022; Sun et al., Massive Activations, 2024), and a scale that has to
reach them leaves nothing of the other channels. So they are kept apart, exactly, and the scale is that of the ordinary
ones. Which they are is fitted once to a sample and stands in the manifest.

Shapes: N positions, M positions of a sample, D width, K outlier channels, C ordinary channels (D - K).
"""

import math
from typing import Annotated, TypeVar

import polars as pl
import torch
from pydantic import AfterValidator
from torch import Tensor

from shared.dump.codecs.base import VectorCodec
from shared.dump.codecs.columns import Column

# At most one channel in so many is kept apart.
OUTLIERS_IN = 16

Vectors = TypeVar("Vectors", bound=VectorCodec)


def _rising(channels: tuple[int, ...]) -> tuple[int, ...]:
    if any(channel < 0 for channel in channels) or sorted(set(channels)) != list(channels):
        raise ValueError(f"outlier channels are to be rising numbers from 0, and are {channels}")
    return channels


OutlierChannels = Annotated[tuple[int, ...], AfterValidator(_rising)]


def require_ordinary(width: int, outlier_channels: tuple[int, ...]) -> None:
    """Raises ValueError for an outlier channel that is not there, or where no ordinary channel is left."""
    if outlier_channels and (outlier_channels[-1] >= width or len(outlier_channels) == width):
        raise ValueError(f"outlier channels {outlier_channels} do not fit vectors {width} wide")


def with_fitted_outliers(codec: Vectors, sample_MD: Tensor) -> Vectors:
    """The codec, which has a field `outlier_channels`, with as many of them (none, 1, 2, 3, 4, 6, 8, 12, ...) as pay.

    Any codec halves its error (a quarter of the squared one) for one more bit a channel. So a setting costs its bytes
    and the bytes that would bring its error down to that of the others.
    """
    sample_MD = sample_MD.float()

    def cost(candidate: Vectors) -> float:
        squared_error = (candidate.decode(candidate.encode(sample_MD)) - sample_MD).double().square().mean().item()
        stored = sum(column.bytes_per_position for column in candidate.columns)
        return stored + codec.width / 8 * math.log2(squared_error) / 2 if squared_error else -math.inf

    largest_first = sample_MD.abs().amax(0).argsort(descending=True, stable=True).tolist()
    most = codec.width // OUTLIERS_IN
    steps = {0, 1, *(step * 2**power for step in (2, 3) for power in range(most.bit_length()))}
    counts = sorted(step for step in steps if step <= most)
    candidates = [
        codec.model_copy(update={"outlier_channels": tuple(sorted(largest_first[:count]))}) for count in counts
    ]
    return min(candidates, key=cost)


def outlier_columns(name: str, outlier_channels: tuple[int, ...]) -> tuple[Column, ...]:
    """The column that holds the outlier channels as they are, if there are any."""
    return (Column(f"{name}.outliers", "float32", len(outlier_channels)),) if outlier_channels else ()


def split(vectors_ND: Tensor, outlier_channels: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(ordinary channels [N, C], outlier channels [N, K])."""
    order = _order(vectors_ND.shape[-1], outlier_channels)
    sorted_ND = vectors_ND[:, torch.tensor(order, device=vectors_ND.device)] if outlier_channels else vectors_ND
    ordinary = len(order) - len(outlier_channels)
    return sorted_ND[:, :ordinary], sorted_ND[:, ordinary:]


def merge(ordinary_NC: Tensor, outliers_NK: Tensor, outlier_channels: tuple[int, ...]) -> Tensor:
    """What `split` took apart, [N, D]."""
    if not outlier_channels:
        return ordinary_NC
    order = _order(ordinary_NC.shape[-1] + outliers_NK.shape[-1], outlier_channels)
    merged_ND = ordinary_NC.new_empty(len(ordinary_NC), len(order))
    merged_ND[:, torch.tensor(order, device=ordinary_NC.device)] = torch.cat([ordinary_NC, outliers_NK], -1)
    return merged_ND


def merge_expr(ordinary: pl.Expr, name: str, width: int, outlier_channels: tuple[int, ...]) -> pl.Expr:
    """The same in polars, of a list[f32] of the ordinary channels and the column of the outliers."""
    if not outlier_channels:
        return ordinary
    place = {channel: index for index, channel in enumerate(_order(width, outlier_channels))}
    (column,) = outlier_columns(name, outlier_channels)
    return pl.concat_list(ordinary, column.list_expr()).list.gather([place[channel] for channel in range(width)])


def _order(width: int, outlier_channels: tuple[int, ...]) -> list[int]:
    apart = set(outlier_channels)
    return [channel for channel in range(width) if channel not in apart] + list(outlier_channels)
