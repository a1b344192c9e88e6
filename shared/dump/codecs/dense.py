"""The codec for few classes: it stores all logits.

Shapes: N positions, V classes.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from shared.dump.codecs.base import DistributionCodec, refuse_broken
from shared.dump.codecs.bounds import require_within
from shared.dump.codecs.columns import Column
from shared.dump.codecs.targets import DenseTargets


class Dense(DistributionCodec):
    """All logits as float32, for few classes. Exact."""

    needs_sample: ClassVar[bool] = False
    keeps_all_logits: ClassVar[bool] = True

    codec: Literal["dense"] = "dense"
    classes: int = Field(ge=1)

    @property
    def outcomes(self) -> int:
        return self.classes

    @property
    def _logits(self) -> Column:
        return Column(f"{self.name}.logits", "float32", self.classes)

    @property
    def columns(self) -> tuple[Column, ...]:
        return (self._logits,)

    def describe(self) -> str:
        return f"all {self.classes:,} logits"

    def check(self, columns: Mapping[str, NDArray[Any]]) -> None:
        for name, logits in columns.items():
            require_within(name, logits, -np.inf, float(np.finfo(np.float32).max))
            if logits.size and logits.min() == -np.inf and (logits.reshape(-1, self.classes).max(1) == -np.inf).any():
                raise ValueError(f"column {name!r} rules out all classes of a position")

    def encode(self, logits_NV: Tensor, keys_N: Tensor) -> dict[str, Tensor]:
        refuse_broken((logits_NV.isnan() | logits_NV.isposinf()).any(-1))
        return {self._logits.name: logits_NV if self.classes > 1 else logits_NV.squeeze(-1)}

    def decode(self, columns: dict[str, Tensor]) -> DenseTargets:
        return DenseTargets(columns[self._logits.name].reshape(-1, self.classes).float())

    def ids_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        return pl.lit(list(range(self.classes)), dtype=pl.List(pl.Int64))

    def log_probs_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        value = pl.element()
        shifted = value - value.max()
        return self._logits.list_expr().cast(pl.List(pl.Float64)).list.eval(shifted - shifted.exp().sum().log())

    def exact_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        return pl.lit(self.classes, dtype=pl.UInt32)

    def tail_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        return pl.lit(float("-inf"))
