"""Codecs: how a signal's tensors become plain Parquet columns and come back. One table of them, at the end.

A codec is its own description: a frozen pydantic model whose fields are the parameters that the manifest keeps.
`encode` runs on the teacher's device, `decode` on the student's, `log_probs_expr` and `values_expr` in polars. A column
holds one fixed-size binary (or, where it is one number wide, that number) for each recorded position.

Shapes: N positions, V vocabulary or classes, K kept candidates, D width.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

DISTRIBUTION = "distribution"
HIDDEN = "hidden"


@dataclass(frozen=True)
class Column:
    """One Parquet column of a signal: its name, numpy type and how many numbers a position takes."""

    name: str
    dtype: str
    width: int

    @property
    def bytes_per_position(self) -> int:
        """Bytes a position, before compression."""
        return np.dtype(self.dtype).itemsize * self.width

    def expr(self) -> pl.Expr:
        """The exploded column (one value a position) as a number, or as an array of numbers where it is wider."""
        dtype = _POLARS_TYPES[self.dtype]
        raw = pl.col(self.name)
        return raw.cast(dtype) if self.width == 1 else raw.bin.reinterpret(dtype=pl.Array(dtype, self.width))


_POLARS_TYPES = {"float32": pl.Float32, "float16": pl.Float16, "int32": pl.Int32, "uint16": pl.UInt16}


@dataclass(frozen=True)
class DenseTargets:
    """The teacher's whole distributions: logits_NV."""

    logits_NV: Tensor

    def argmax(self) -> Tensor:
        """The teacher's most probable class at each position, [N]."""
        return self.logits_NV.argmax(-1)

    def resized(self, classes: int) -> "DenseTargets":
        """For a student's head of another width: both heads are padded beyond the tokenizer's entries, and what is
        beyond one of them has no mass."""
        missing = classes - self.logits_NV.shape[-1]
        return self if missing == 0 else DenseTargets(functional.pad(self.logits_NV, (0, missing), value=-torch.inf))


@dataclass(frozen=True)
class TopKTargets:
    """The K most probable ids of each position, most probable first.

    ids_NK int64; log_probs_NK log-softmax values over the whole vocabulary; tail_N the log of the mass outside.
    """

    ids_NK: Tensor
    log_probs_NK: Tensor
    tail_N: Tensor

    def argmax(self) -> Tensor:
        """The teacher's most probable id at each position, [N]."""
        return self.ids_NK[:, 0]

    def resized(self, classes: int) -> "TopKTargets":
        """For a student's head of another width: an id beyond it (padding of the teacher's head) joins the tail."""
        beyond_NK = self.ids_NK >= classes
        if not beyond_NK.any():
            return self
        beyond_N = self.log_probs_NK.masked_fill(~beyond_NK, -torch.inf).logsumexp(-1)
        return TopKTargets(
            self.ids_NK.masked_fill(beyond_NK, 0),
            self.log_probs_NK.masked_fill(beyond_NK, -torch.inf),
            torch.logaddexp(self.tail_N, beyond_N),
        )


class Codec(BaseModel, ABC):
    """What every codec offers; `name` is the signal's name and the head of its columns' names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str

    @property
    @abstractmethod
    def columns(self) -> tuple[Column, ...]:
        """Its Parquet columns."""

    def describe(self) -> str:
        """A few words for people."""
        return (
            f"{self.name} ({', '.join(f'{key} {value}' for key, value in self.model_dump(exclude={'name'}).items())})"
        )


class DistributionCodec(Codec):
    """A codec of distributions over classes or a vocabulary."""

    @abstractmethod
    def encode(self, logits_NV: Tensor) -> dict[str, Tensor]:
        """float32 logits -> column name -> [N, width], or [N] where the width is 1."""

    @abstractmethod
    def decode(self, columns: dict[str, Tensor]) -> "DenseTargets | TopKTargets":
        """What the columns hold, as float32 (and int64 for ids) on the columns' device."""

    @abstractmethod
    def ids_expr(self) -> pl.Expr:
        """list[i64] a position: the kept ids, most probable first (all classes in their order for a dense one)."""

    @abstractmethod
    def log_probs_expr(self) -> pl.Expr:
        """list[f64] a position: log-probabilities of these ids."""

    @abstractmethod
    def tail_expr(self) -> pl.Expr:
        """f64 a position: log of the mass outside the list, -inf where nothing is outside."""


class Dense(DistributionCodec):
    """All logits as float32, for few classes. Exact."""

    codec: Literal["dense"] = "dense"
    classes: int = Field(ge=1)

    @property
    def _logits(self) -> Column:
        return Column(f"{self.name}.logits", "float32", self.classes)

    @property
    def columns(self) -> tuple[Column, ...]:
        return (self._logits,)

    def encode(self, logits_NV: Tensor) -> dict[str, Tensor]:
        return {self._logits.name: logits_NV if self.classes > 1 else logits_NV.squeeze(-1)}

    def decode(self, columns: dict[str, Tensor]) -> DenseTargets:
        return DenseTargets(columns[self._logits.name].reshape(-1, self.classes).float())

    def ids_expr(self) -> pl.Expr:
        return pl.lit(list(range(self.classes)), dtype=pl.List(pl.Int64))

    def log_probs_expr(self) -> pl.Expr:
        value = pl.element()
        shifted = value - value.max()
        raw = self._logits.expr()
        logits = (raw.arr.to_list() if self.classes > 1 else pl.concat_list(raw)).cast(pl.List(pl.Float64))
        return logits.list.eval(shifted - shifted.exp().sum().log())

    def tail_expr(self) -> pl.Expr:
        return pl.lit(float("-inf"))


class TopK(DistributionCodec):
    """The k most probable ids with exact log-softmax values over the whole vocabulary, and the mass left out.

    Log-probabilities are float16: off by at most 2**-11 of their size, or 2**-25 near 0 (and float32's own error, some
    1e-6). The mass left out is exact to 1e-5 of itself, however small it is.
    """

    codec: Literal["top-k"] = "top-k"
    k: int = Field(ge=1)
    vocabulary: int = Field(ge=1)

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

    def encode(self, logits_NV: Tensor) -> dict[str, Tensor]:
        top_NK, ids_NK = logits_NV.topk(self.k, dim=-1)
        # Relative to the largest logit: next to a logit of 10,000 float32 would round log-probabilities to 0.001.
        largest_N1 = top_NK[:, :1]
        mass_NV = (logits_NV - largest_N1).exp_()
        total_N1 = mass_NV.sum(-1, keepdim=True)
        log_probs_NK = (top_NK - largest_N1) - total_N1.log()
        # Summed over what is left out, because 1 - the kept mass would lose a confident teacher's sliver to rounding.
        tail_N1 = (mass_NV.scatter_(-1, ids_NK, 0.0).sum(-1, keepdim=True) / total_N1).log()
        smallest = torch.finfo(torch.float16).min
        values = (ids_NK, log_probs_NK.clamp(min=smallest).half(), tail_N1.float())
        return {
            column.name: value.squeeze(-1) if column.width == 1 else value
            for column, value in zip(self.columns, values, strict=True)
        }

    def decode(self, columns: dict[str, Tensor]) -> TopKTargets:
        return TopKTargets(
            columns[self._ids.name].reshape(-1, self.k).long(),
            columns[self._log_probs.name].reshape(-1, self.k).float(),
            columns[self._tail.name].float(),
        )

    def _as_list(self, column: Column) -> pl.Expr:
        raw = column.expr()
        return raw.arr.to_list() if column.width > 1 else pl.concat_list(raw)

    def ids_expr(self) -> pl.Expr:
        return self._as_list(self._ids).cast(pl.List(pl.Int64))

    def log_probs_expr(self) -> pl.Expr:
        return self._as_list(self._log_probs).cast(pl.List(pl.Float64))

    def tail_expr(self) -> pl.Expr:
        return self._tail.expr().cast(pl.Float64)


class Float16Vectors(Codec):
    """Hidden states of one layer, rounded to float16: off by at most 2**-11 of each value (2**-25 near 0).

    `layer` counts as transformers' `hidden_states` does: 0 is the embeddings' output, n that of the n-th layer.
    """

    codec: Literal["float16"] = "float16"
    layer: int = Field(ge=0)
    width: int = Field(ge=1)

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column(self.name, "float16", self.width),)

    def encode(self, vectors_ND: Tensor) -> dict[str, Tensor]:
        """Vectors [N, D] -> the column. Values beyond float16's range become infinite, which the caller refuses."""
        return {self.name: vectors_ND.half() if self.width > 1 else vectors_ND.half().squeeze(-1)}

    def decode(self, columns: dict[str, Tensor]) -> Tensor:
        """The column -> float32 [N, D]."""
        return columns[self.name].reshape(-1, self.width).float()

    def vector_expr(self) -> pl.Expr:
        """list[f32] a position."""
        raw = self.columns[0].expr()
        return (raw.arr.to_list() if self.width > 1 else pl.concat_list(raw)).cast(pl.List(pl.Float32))


Signal = Annotated[Dense | TopK | Float16Vectors, Field(discriminator="codec")]
