"""Outlier channels: the few channels of a hidden state that are far larger than the others, in every vector or in some.

Transformers have them (Dettmers et al., LLM.int8, 2022; Sun et al., Massive Activations, 2024), and a scale that has to
reach them leaves nothing of the other channels. So they are kept apart, exactly, and the scale is that of the ordinary
ones. Which they are is fitted once (`fitting.py`) and stands in the manifest.

Shapes: N positions, D width, K outlier channels, C ordinary channels (D - K).
"""

from typing import Annotated

import polars as pl
import torch
from pydantic import AfterValidator
from torch import Tensor

from shared.dump.codecs.base import Column


def _rising(channels: tuple[int, ...]) -> tuple[int, ...]:
    if any(channel < 0 for channel in channels) or sorted(set(channels)) != list(channels):
        raise ValueError(f"outlier channels are to be rising numbers from 0, and are {channels}")
    return channels


OutlierChannels = Annotated[tuple[int, ...], AfterValidator(_rising)]


def require_ordinary(width: int, outlier_channels: tuple[int, ...]) -> None:
    """Raises ValueError for an outlier channel that is not there, or where no ordinary channel is left."""
    if outlier_channels and (outlier_channels[-1] >= width or len(outlier_channels) == width):
        raise ValueError(f"outlier channels {outlier_channels} do not fit vectors {width} wide")


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
