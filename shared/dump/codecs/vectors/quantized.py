"""Vector codecs with 16, 8 or about 4 bits per number.

Shapes: N positions, D width, K outlier channels, C ordinary channels (D - K), G groups of channels, B bytes of codes.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from shared.dump.codecs.base import VectorCodec, refuse_broken
from shared.dump.codecs.bounds import require_finite, require_within
from shared.dump.codecs.columns import Column, Width
from shared.dump.codecs.vectors.outliers import (
    OutlierChannels,
    merge,
    merge_expr,
    outlier_columns,
    require_ordinary,
    split,
    with_fitted_outliers,
)

# The smallest scale. Below it float32 loses precision, and some devices treat numbers as 0.
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


class Float16Vectors(VectorCodec):
    """Vectors rounded to float16: an error of at most 2**-11 of each value (2**-25 near 0); no values above 65,504."""

    codec: Literal["float16"] = "float16"
    width: Width

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column(self.name, "float16", self.width),)

    def describe(self) -> str:
        return f"float16, {self.width} wide"

    def explain(self) -> str:
        return f"`{self.name}`"

    def check(self, columns: Mapping[str, NDArray[Any]]) -> None:
        for name, values in columns.items():
            require_finite(name, values)

    def encode(self, vectors_ND: Tensor) -> dict[str, Tensor]:
        rounded_ND = vectors_ND.half()
        refuse_broken(~rounded_ND.isfinite().all(-1))
        return {self.name: rounded_ND if self.width > 1 else rounded_ND.squeeze(-1)}

    def decode(self, columns: dict[str, Tensor]) -> Tensor:
        return columns[self.name].reshape(-1, self.width).float()

    def vector_expr(self) -> pl.Expr:
        return self.columns[0].list_expr().cast(pl.List(pl.Float32))


class Int8Vectors(VectorCodec):
    """Vectors as 8-bit codes times a float32 scale per position; outlier channels are stored beside them as float32.

    The error of an ordinary channel is at most 1/253 of the largest ordinary channel of its position (1e-38 near 0):
    half a scale plus float32's rounding. An outlier channel is exact. Finite values up to 1.7e38 can be encoded.
    """

    keeps_outliers: ClassVar[bool] = True

    codec: Literal["int8"] = "int8"
    width: Width
    outlier_channels: OutlierChannels = ()

    @model_validator(mode="after")
    def _outliers_fit(self) -> Self:
        require_ordinary(self.width, self.outlier_channels)
        return self

    @property
    def outliers(self) -> tuple[int, ...]:
        return self.outlier_channels

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            Column(f"{self.name}.codes", "int8", self.width - len(self.outlier_channels)),
            Column(f"{self.name}.scale", "float32"),
            *outlier_columns(self.name, self.outlier_channels),
        )

    def describe(self) -> str:
        return f"int8{_apart(self.outlier_channels)}, {self.width} wide"

    def explain(self) -> str:
        return f"`{self.name}.codes * {self.name}.scale`"

    def fitted(self, sample_MD: Tensor) -> Self:
        return with_fitted_outliers(self, sample_MD)

    def check(self, columns: Mapping[str, NDArray[Any]]) -> None:
        _check(self.name, columns, largest_code=128)

    def encode(self, vectors_ND: Tensor) -> dict[str, Tensor]:
        ordinary_NC, outliers_NK = split(vectors_ND.float(), self.outlier_channels)
        refuse_broken(_unusable(ordinary_NC) | _unusable(outliers_NK))
        scale_N1 = (ordinary_NC.abs().amax(-1, keepdim=True) / 127).clamp(min=_SMALLEST_SCALE)
        codes_NC = (ordinary_NC / scale_N1).round().to(torch.int8)
        return _named(self.columns, codes_NC, scale_N1, outliers_NK)

    def decode(self, columns: dict[str, Tensor]) -> Tensor:
        codes_NC, scale_N1, *outliers = _matrices(self.columns, columns)
        return merge(codes_NC.float() * scale_N1, outliers[0] if outliers else scale_N1[:, :0], self.outlier_channels)

    def vector_expr(self) -> pl.Expr:
        codes, scale, *_ = self.columns
        ordinary = codes.list_expr().cast(pl.List(pl.Float32)) * scale.expr()
        return merge_expr(ordinary, self.name, self.width, self.outlier_channels)


class Int4Vectors(VectorCodec):
    """Vectors as 4-bit codes c from -8 to 7, which mean c (c**2 + 128), times a scale for each `group` of channels.

    The levels are closer near 0, where most values of a bell-shaped group are, and the group's largest value has code
    -8 whatever its sign. On MiniLM's hidden states that leaves 52 to 65% of the squared error of equidistant levels
    from -7 to 7 with the same scales, and 90 to 94% of NF4's (Dettmers et al., QLoRA, 2023), and it needs arithmetic
    but no table. Groups of 32 use bytes best there: smaller groups cost more than the same bytes in wider codes, larger
    groups lose more. The scale of a group is a signed 8-bit multiple of a float32 scale per position.

    The error of an ordinary channel is at most 0.194 of the largest value of its group + 0.0008 of the largest ordinary
    value of its position (1e-35 near 0), and usually a quarter of that. An outlier channel is exact, as float32.

    A byte holds two codes: the low nibbles hold the first half of the ordinary channels (as c + 8), the high nibbles
    the second half.
    """

    keeps_outliers: ClassVar[bool] = True

    codec: Literal["int4"] = "int4"
    width: Width
    group: int = Field(default=32, ge=1)
    outlier_channels: OutlierChannels = ()

    @model_validator(mode="after")
    def _outliers_fit(self) -> Self:
        require_ordinary(self.width, self.outlier_channels)
        return self

    @property
    def outliers(self) -> tuple[int, ...]:
        return self.outlier_channels

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            Column(f"{self.name}.codes", "uint8", -(-self._ordinary // 2)),
            Column(f"{self.name}.group_scales", "int8", -(-self._ordinary // self.group)),
            Column(f"{self.name}.scale", "float32"),
            *outlier_columns(self.name, self.outlier_channels),
        )

    def describe(self) -> str:
        coded = f"int4 in groups of {self.group}{_apart(self.outlier_channels)}"
        return f"{coded}, {self.width} wide"

    def explain(self) -> str:
        return f"the vector in `{self.name}.*` (coded as `shared/dump/codecs/vectors/quantized.py` describes)"

    def fitted(self, sample_MD: Tensor) -> Self:
        return with_fitted_outliers(self, sample_MD)

    def check(self, columns: Mapping[str, NDArray[Any]]) -> None:
        _check(self.name, columns, largest_code=128 * -_level(-8))

    def encode(self, vectors_ND: Tensor) -> dict[str, Tensor]:
        ordinary_NC, outliers_NK = split(vectors_ND.float(), self.outlier_channels)
        refuse_broken(_unusable(ordinary_NC) | _unusable(outliers_NK))
        groups_NGg = functional.pad(ordinary_NC, (0, -self._ordinary % self.group)).unflatten(-1, (-1, self.group))
        largest_NG1 = groups_NGg.gather(-1, groups_NGg.abs().argmax(-1, keepdim=True))
        # The scale that maps the largest value to the lowest level; rounded away from 0, so that the level reaches it.
        wanted_NG = largest_NG1.squeeze(-1) / _level(-8)
        scale_N1 = (wanted_NG.abs().amax(-1, keepdim=True) / 127).clamp(min=_SMALLEST_SCALE)
        group_scales_NG = (wanted_NG.sign() * (wanted_NG.abs() / scale_N1).ceil().clamp(max=127)).to(torch.int8)
        step_NC = self._per_channel(group_scales_NG) * scale_N1
        # If the step is 0, the whole group is 0.
        levels_NC = ordinary_NC / torch.where(step_NC == 0, 1.0, step_NC)
        between = torch.tensor([(_level(c) + _level(c + 1)) / 2 for c in range(-8, 7)], device=levels_NC.device)
        nibbles_NC = torch.bucketize(levels_NC, between).to(torch.uint8)
        half = -(-self._ordinary // 2)
        high_NB = functional.pad(nibbles_NC[:, half:], (0, self._ordinary % 2))
        return _named(self.columns, nibbles_NC[:, :half] + 16 * high_NB, group_scales_NG, scale_N1, outliers_NK)

    def decode(self, columns: dict[str, Tensor]) -> Tensor:
        codes_NB, group_scales_NG, scale_N1, *outliers = _matrices(self.columns, columns)
        code_NC = torch.cat([codes_NB % 16, codes_NB // 16], -1)[:, : self._ordinary].float() - 8
        ordinary_NC = code_NC * (code_NC * code_NC + 128) * (self._per_channel(group_scales_NG) * scale_N1)
        return merge(ordinary_NC, outliers[0] if outliers else scale_N1[:, :0], self.outlier_channels)

    def vector_expr(self) -> pl.Expr:
        codes, group_scales, scale, *_ = self.columns
        pairs = codes.list_expr()
        nibbles = pl.concat_list(pairs % 16, pairs // 16).list.head(self._ordinary)
        code = nibbles.cast(pl.List(pl.Float32)) - pl.lit(8, pl.Float32)
        of_channel = [channel // self.group for channel in range(self._ordinary)]
        steps = group_scales.list_expr().list.gather(of_channel).cast(pl.List(pl.Float32)) * scale.expr()
        ordinary = code * (code * code + pl.lit(128, pl.Float32)) * steps
        return merge_expr(ordinary, self.name, self.width, self.outlier_channels)

    @property
    def _ordinary(self) -> int:
        return self.width - len(self.outlier_channels)

    def _per_channel(self, group_scales_NG: Tensor) -> Tensor:
        return group_scales_NG.float().repeat_interleave(self.group, -1)[:, : self._ordinary]


def _level(code: int) -> int:
    return code * (code * code + 128)


def _check(name: str, columns: Mapping[str, NDArray[Any]], largest_code: int) -> None:
    """Check scales and outliers; a code is at most `largest_code` times its position's scale. Raises ValueError."""
    scale, outliers = f"{name}.scale", f"{name}.outliers"
    if scale in columns:
        require_within(scale, columns[scale], 0, torch.finfo(torch.float32).max / largest_code)
    if outliers in columns:
        require_finite(outliers, columns[outliers])


def _unusable(values_NC: Tensor) -> Tensor:
    """Return bool [N]: whether a vector has NaN, infinity, or values so large that a rounded scale could overflow."""
    return ~(values_NC * 2).isfinite().all(-1)


def _apart(outlier_channels: tuple[int, ...]) -> str:
    return f", {len(outlier_channels)} of its channels float32" if outlier_channels else ""


def _named(columns: tuple[Column, ...], *matrices: Tensor) -> dict[str, Tensor]:
    """Return matrices [N, width] as columns by name; a column of width 1 is [N]."""
    values = zip(columns, matrices, strict=False)  # without outlier channels there is one matrix more than columns
    return {column.name: matrix if column.width != 1 else matrix.squeeze(-1) for column, matrix in values}


def _matrices(columns: tuple[Column, ...], values: dict[str, Tensor]) -> list[Tensor]:
    """Return the matrices [N, width] of columns."""
    return [values[column.name].reshape(-1, column.width or 1) for column in columns]
