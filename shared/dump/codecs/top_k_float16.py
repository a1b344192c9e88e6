"""The top-k codec of format version 1, which can still be read. `sparse` has replaced it for new dumps.

Shapes: N positions, V vocabulary, K kept candidates.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from shared.dump.codecs.base import DistributionCodec
from shared.dump.codecs.bounds import require_within
from shared.dump.codecs.columns import Column
from shared.dump.codecs.targets import SparseTargets


class TopKFloat16(DistributionCodec):
    """The k most probable ids, most probable first, with float16 log-softmax values, and the mass of the others.

    The error of a log-probability is at most 2**-11 of its size, or 2**-25 near 0 (plus the error of float32, about
    1e-6). The relative error of the mass of the others is at most 1e-5, however small it is.
    """

    codec: Literal["top-k"] = "top-k"
    k: int = Field(ge=1)
    vocabulary: int = Field(ge=1)

    def describe(self) -> str:
        return f"top {self.k} of {self.vocabulary:,} ids, float16"

    @property
    def outcomes(self) -> int:
        return self.vocabulary

    @property
    def _ids(self) -> Column:
        return Column(f"{self.name}.ids", "uint16" if self.vocabulary <= 2**16 else "int32", self.k)

    @property
    def _log_probs(self) -> Column:
        return Column(f"{self.name}.log_probs", "float16", self.k)

    @property
    def _tail(self) -> Column:
        return Column(f"{self.name}.tail", "float32", 1)

    @property
    def columns(self) -> tuple[Column, ...]:
        return (self._ids, self._log_probs, self._tail)

    def check(self, columns: Mapping[str, NDArray[Any]]) -> None:
        for column, lowest, highest in (
            (self._ids, 0, self.vocabulary - 1),
            (self._log_probs, -np.inf, 0),
            (self._tail, -np.inf, 0),
        ):
            if column.name in columns:
                require_within(column.name, columns[column.name], lowest, highest)

    def encode(self, logits_NV: Tensor, keys_N: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError("new dumps are written with the codec `sparse`")

    def decode(self, columns: dict[str, Tensor]) -> SparseTargets:
        return SparseTargets(
            columns[self._ids.name].reshape(-1, self.k).long(),
            columns[self._log_probs.name].reshape(-1, self.k).float(),
            columns[self._tail.name].float(),
        )

    def ids_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        return self._ids.list_expr().cast(pl.List(pl.Int64))

    def log_probs_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        return self._log_probs.list_expr().cast(pl.List(pl.Float64))

    def exact_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        return pl.lit(self.k, dtype=pl.UInt32)

    def tail_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        return self._tail.expr().cast(pl.Float64)
