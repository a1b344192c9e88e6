"""What every codec is: how a signal's tensors become plain Parquet columns and come back.

A codec is its own description: a frozen pydantic model whose fields are the parameters that the manifest keeps.
`encode` runs on the teacher's device, `decode` on the student's, and its expressions in polars.

A column holds, for each position, one number, one fixed-size binary of `width` numbers, or a list of any length. In
memory a list column is flat: its values under the column's name, and how many each position has under `counts_of` it.

Shapes: N positions, V vocabulary or classes, D width, E values of all positions of a list column.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from shared.dump.codecs.targets import Targets

_POLARS_TYPES = {
    "float32": pl.Float32,
    "float16": pl.Float16,
    "int64": pl.Int64,
    "int32": pl.Int32,
    "int8": pl.Int8,
    "uint16": pl.UInt16,
    "uint8": pl.UInt8,
}


@dataclass(frozen=True)
class Column:
    """One Parquet column of a signal: its name, numpy type and how many numbers a position takes (None: a list)."""

    name: str
    dtype: str
    width: int | None = 1

    @property
    def is_list(self) -> bool:
        """Whether positions differ in how many numbers they take."""
        return self.width is None

    @property
    def bytes_per_position(self) -> int:
        """Bytes a position, before compression; of a list, those of one value."""
        return np.dtype(self.dtype).itemsize * (1 if self.width is None else self.width)

    def expr(self) -> pl.Expr:
        """The exploded column (one value a position) as a number, an array of numbers, or a list of them."""
        raw, dtype = pl.col(self.name), _POLARS_TYPES[self.dtype]
        if self.is_list:
            return raw
        return raw.cast(dtype) if self.width == 1 else raw.bin.reinterpret(dtype=pl.Array(dtype, self.width))

    def list_expr(self) -> pl.Expr:
        """The same as a list, whatever the width."""
        if self.is_list:
            return self.expr()
        return self.expr().arr.to_list() if self.width != 1 else pl.concat_list(self.expr())


def counts_of(column: str) -> str:
    """Under which name the counts of a list column lie beside its values."""
    return f"{column}#counts"


class NotFiniteError(ValueError):
    """NaN or infinity where a codec cannot have it; `position` is the first such position of the encoded batch."""

    def __init__(self, position: int) -> None:
        super().__init__(f"NaN or infinity at position {position}")
        self.position = position


def refuse_broken(is_broken_N: Tensor) -> None:
    """Raises NotFiniteError for the first position marked."""
    if is_broken_N.any():
        raise NotFiniteError(int(is_broken_N.nonzero()[0, 0]))


class Codec(BaseModel, ABC):
    """What every codec offers; `name` is the head of its columns' names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Whether the columns are worth a general-purpose compressor's time.
    compresses: ClassVar[bool] = True

    name: str

    @property
    @abstractmethod
    def columns(self) -> tuple[Column, ...]:
        """Its Parquet columns."""

    @abstractmethod
    def describe(self) -> str:
        """A few words for people about how it keeps what."""

    @property
    def bytes_per_position(self) -> int:
        """Bytes a position before compression, by which row groups are cut; a guess where positions differ."""
        return sum(column.bytes_per_position for column in self.columns)

    def explain(self) -> str:
        """How to read the columns without Lectern, where their types do not say it."""
        return ""

    @property
    def constants_file(self) -> str | None:
        """The file in the dump's `weights/` that holds the constants, or None where the manifest says everything."""
        return None

    def constants(self) -> dict[str, Tensor]:
        """Tensors too large for the manifest that `encode` or `decode` needs, to be kept in `constants_file`."""
        return {}

    def with_constants(self, tensors: dict[str, Tensor]) -> Self:
        """This codec with the tensors of `constants_file`.

        Raises:
            DumpError: when they are not those that it was made with.
        """
        return self


class DistributionCodec(Codec):
    """A codec of distributions over classes or a vocabulary.

    `takes` says what `encode` is given: logits, or the states that the output projection makes logits of.
    """

    takes: ClassVar[Literal["logits", "states"]] = "logits"

    @property
    def samples(self) -> bool:
        """Whether sampled ids stand for the tail."""
        return False

    @property
    def has_exact_ids(self) -> bool:
        """Whether the probability of some ids is known."""
        return True

    @abstractmethod
    def encode(self, said: Tensor, keys_N: Tensor, /) -> dict[str, Tensor]:
        """What it `takes` (float32 logits_NV, or states_ND of any floating type) -> the columns. `keys_N` (int64) name
        the positions for what is drawn at random.

        Raises:
            NotFiniteError: for NaN or +infinity, and where it takes states, for a value beyond what the columns can
                hold. A logit of -infinity is a class ruled out.
        """

    @abstractmethod
    def decode(self, columns: dict[str, Tensor]) -> Targets:
        """What the columns hold, as float32 (and int64 for ids) on the columns' device."""

    def ranked_expr(self) -> pl.Expr:
        """What the next ones are made from: evaluated once, its column may be given to each of them."""
        return pl.lit(None)

    @abstractmethod
    def ids_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        """list[i64] a position: the kept ids, most probable first (all classes in their order for a dense one)."""

    @abstractmethod
    def log_probs_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        """list[f64] a position: log-probabilities of these ids (of a sampled one: the log of what it weighs)."""

    @abstractmethod
    def exact_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        """u32 a position: how many ids, counted from the list's first, are exact; the others are sampled."""

    @abstractmethod
    def tail_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        """f64 a position: log of the mass outside the exact ids of the list, -inf where nothing is outside."""

    def entropy_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        """f64 a position, in nats, of a frame that has the last expressions as columns `log_probs` and `tail`: a lower
        bound where the tail is one class."""
        log_p, tail = pl.element(), pl.col("tail")
        # 0 * log 0 is 0.
        inside = pl.col("log_probs").list.eval(pl.when(log_p.is_infinite()).then(0.0).otherwise(-log_p.exp() * log_p))
        # Sampled ids stand for the tail themselves.
        outside = 0.0 if self.samples else pl.when(tail.is_infinite()).then(0.0).otherwise(-tail.exp() * tail)
        return inside.list.sum() + outside


class VectorCodec(Codec):
    """A codec of vectors, such as the hidden states of a layer."""

    compresses: ClassVar[bool] = False

    width: int

    @abstractmethod
    def encode(self, vectors_ND: Tensor) -> dict[str, Tensor]:
        """Vectors [N, D] of any floating type -> the columns.

        Raises:
            NotFiniteError: for NaN, infinity, or a value beyond what the columns can hold.
        """

    @abstractmethod
    def decode(self, columns: dict[str, Tensor]) -> Tensor:
        """The columns -> float32 [N, D] on their device."""

    @abstractmethod
    def vector_expr(self) -> pl.Expr:
        """list[f32] a position."""
