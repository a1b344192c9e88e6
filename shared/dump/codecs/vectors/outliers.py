"""Outlier channels: the few channels of a hidden state that are far larger than the others, in every vector or in some.

Transformers have them (Dettmers et al., LLM.int8, 2022; Sun et al., Massive Activations, 2024). A quantization scale
that covers them rounds the other channels to almost nothing. So outlier channels are stored separately and exactly, and
the scale covers the ordinary channels. The list of outlier channels is fitted once to a sample; the manifest stores it.

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

# At most one channel in so many is an outlier channel.
OUTLIERS_IN = 16

Vectors = TypeVar("Vectors", bound=VectorCodec)


def _rising(channels: tuple[int, ...]) -> tuple[int, ...]:
    if any(channel < 0 for channel in channels) or sorted(set(channels)) != list(channels):
        raise ValueError(f"outlier channels must be strictly increasing numbers from 0, not {channels}")
    return channels


OutlierChannels = Annotated[tuple[int, ...], AfterValidator(_rising)]


def require_ordinary(width: int, outlier_channels: tuple[int, ...]) -> None:
    """Raise ValueError for an outlier channel that does not exist, or if no ordinary channel is left."""
    if outlier_channels and (outlier_channels[-1] >= width or len(outlier_channels) == width):
        raise ValueError(f"outlier channels {outlier_channels} do not fit vectors of width {width}")


def with_fitted_outliers(codec: Vectors, sample_MD: Tensor) -> Vectors:
    """Return the codec, which has a field `outlier_channels`, with the number of them (0, 1, 2, 3, 4, 6, 8, 12, ...)
    that costs least.

    One more bit per channel halves the error of a codec (and quarters its squared error). So the cost of a candidate is
    its bytes plus the bytes that would bring its error down to that of the other candidates.
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
    """Return the column of the outlier channels, unchanged as float32; none if there are no outlier channels."""
    return (Column(f"{name}.outliers", "float32", len(outlier_channels)),) if outlier_channels else ()


def split(vectors_ND: Tensor, outlier_channels: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Split vectors [N, D] into (ordinary channels [N, C], outlier channels [N, K])."""
    order = _order(vectors_ND.shape[-1], outlier_channels)
    sorted_ND = vectors_ND[:, torch.tensor(order, device=vectors_ND.device)] if outlier_channels else vectors_ND
    ordinary = len(order) - len(outlier_channels)
    return sorted_ND[:, :ordinary], sorted_ND[:, ordinary:]


def merge(ordinary_NC: Tensor, outliers_NK: Tensor, outlier_channels: tuple[int, ...]) -> Tensor:
    """Return the vectors [N, D] that `split` has split."""
    if not outlier_channels:
        return ordinary_NC
    order = _order(ordinary_NC.shape[-1] + outliers_NK.shape[-1], outlier_channels)
    merged_ND = ordinary_NC.new_empty(len(ordinary_NC), len(order))
    merged_ND[:, torch.tensor(order, device=ordinary_NC.device)] = torch.cat([ordinary_NC, outliers_NK], -1)
    return merged_ND


def merge_expr(ordinary: pl.Expr, name: str, width: int, outlier_channels: tuple[int, ...]) -> pl.Expr:
    """`merge` in polars, for a list[f32] of the ordinary channels and the column of the outlier channels."""
    if not outlier_channels:
        return ordinary
    place = {channel: index for index, channel in enumerate(_order(width, outlier_channels))}
    (column,) = outlier_columns(name, outlier_channels)
    return pl.concat_list(ordinary, column.list_expr()).list.gather([place[channel] for channel in range(width)])


def _order(width: int, outlier_channels: tuple[int, ...]) -> list[int]:
    """Return all channels, the ordinary ones first."""
    outliers = set(outlier_channels)
    return [channel for channel in range(width) if channel not in outliers] + list(outlier_channels)
