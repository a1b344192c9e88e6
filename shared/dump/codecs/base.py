"""The base classes of codecs, which encode a signal's tensors as plain Parquet columns and decode them.

A codec is a frozen pydantic model. Its fields are parameters, which the manifest stores. `encode` runs on the teacher's
device, `decode` on the student's device, and the expressions run in polars.

Shapes: N positions, M positions of a sample, V vocabulary or classes, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from shared.dump.codecs.columns import Column, Width
from shared.dump.codecs.targets import Targets
from shared.dump.codecs.vectors.reconstruction import Reconstruction


class NotFiniteError(ValueError):
    """NaN or infinity in values that a codec cannot encode; `position` is the first such position of the batch."""

    def __init__(self, position: int) -> None:
        super().__init__(f"NaN or infinity at position {position}")
        self.position = position


def refuse_broken(is_broken_N: Tensor) -> None:
    """Raise NotFiniteError for the first position that is marked, if any is."""
    if is_broken_N.any():
        raise NotFiniteError(int(is_broken_N.nonzero()[0, 0]))


class Codec(BaseModel, ABC):
    """The base class of all codecs; the names of a codec's columns begin with `name`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Whether general-purpose compression of the columns saves enough bytes to be worth its time.
    compresses: ClassVar[bool] = True
    # Whether the codec needs a sample of the signal to be fitted or measured, which costs a teacher's forward pass.
    needs_sample: ClassVar[bool] = True

    name: str

    @classmethod
    @abstractmethod
    def asked(cls, name: str, size: int, **parameters: Any) -> Self:
        """Return the requested codec, before it is fitted to a sample, for distributions over `size` classes or for
        vectors of width `size`.

        Raises:
            ValidationError: for an invalid parameter.
        """

    @property
    @abstractmethod
    def columns(self) -> tuple[Column, ...]:
        """The codec's Parquet columns."""

    @abstractmethod
    def decode(self, columns: dict[str, Tensor]) -> Any:
        """Decode the columns, on their device."""

    @abstractmethod
    def describe(self) -> str:
        """Describe in a few words what is stored and how, for messages and reports."""

    def check(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Check the values of some of the columns, in the form that `decode` takes, but not as tensors.

        What is checked is what `encode` cannot have made: values for which `decode` fails, or gives NaN, infinity or
        ids beyond the vocabulary. A dump's pages have checksums, but its origin may be unknown.

        Raises:
            ValueError: for such a value, with the name of its column.
        """

    def check_rows(self, columns: Mapping[str, NDArray[Any]], rows: NDArray[np.int64]) -> None:
        """Check values of a row group that name rows; `rows` are the numbers of all rows of the group.

        Raises:
            ValueError: for a row that is not among them.
        """

    @property
    def outcomes(self) -> int | None:
        """The number of classes or ids of what it stores; None if it stores vectors, or does not know it."""
        return None

    @property
    def bytes_per_position(self) -> int:
        """Bytes per position before compression, which decide the size of row groups; an estimate if sizes vary."""
        return sum(column.bytes_per_position for column in self.columns)

    def explain(self) -> str:
        """Explain how to read the columns without Lectern; empty if their types are explanation enough."""
        return ""

    def as_begun(self, begun: "Codec", same_budget: bool) -> "Codec":
        """Return the codec with which a dump is continued: this one, with the parameters that were fitted to a sample
        when the dump was begun.

        Args:
            begun: the codec with which the dump was begun.
            same_budget: whether both were requested with the same number of bytes per position.
        """
        return self

    @property
    def constants_file(self) -> str | None:
        """Name of the file in the dump's `weights/` that holds the constants; None if the codec has none."""
        return None

    def constants(self) -> dict[str, Tensor]:
        """Return the tensors that `encode` or `decode` needs and that are too large for the manifest, by name.

        A dump stores them in `constants_file`.
        """
        return {}

    def with_constants(self, tensors: dict[str, Tensor]) -> Self:
        """Return this codec with the tensors of `constants_file`.

        Raises:
            DumpError: if they differ from those that the dump was written with.
        """
        return self


class Sample(Protocol):
    """A sample of positions to which a distribution codec is fitted; it can be iterated over more than once."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield slices of what the codec `takes` (logits_NV or states_ND), each with the keys_N of its positions."""


class DistributionCodec(Codec):
    """The base class of codecs for distributions over classes or a vocabulary.

    `takes` says what `encode` expects: logits, or the hidden states that are the input of the output projection.
    """

    takes: ClassVar[Literal["logits", "states"]] = "logits"
    # Whether decoding gives every logit, up to rounding.
    keeps_all_logits: ClassVar[bool] = False

    @property
    def samples(self) -> bool:
        """Whether sampled ids represent the tail."""
        return False

    @property
    def has_exact_ids(self) -> bool:
        """Whether the probabilities of some ids are known exactly, up to rounding."""
        return True

    @classmethod
    def asked(cls, name: str, size: int, **parameters: Any) -> Self:
        return cls.model_validate({"name": name, "classes": size, **parameters})

    def fitted(self, sample: Sample) -> Self:
        """Return this codec with parameters that are fitted to a sample."""
        return self

    def within(self, budget: float, bytes_of: Callable[[Self], float]) -> Self:
        """Return this codec with parameters with which it takes about `budget` bytes per position.

        Args:
            budget: bytes per position.
            bytes_of: measures the bytes per position of a codec.

        Raises:
            ValueError: if no parameters meet the budget, or if no parameter changes the size.
        """
        raise ValueError(f"the size of what is recorded as {self.name!r} cannot be chosen")

    def measured(self, sample: Sample) -> dict[str, float]:
        """Measure what encoding loses on a sample, by the names used in the manifest; empty if nothing is lost."""
        return {}

    @abstractmethod
    def encode(self, taken: Tensor, keys_N: Tensor, /) -> dict[str, Tensor]:
        """Encode what the codec `takes` as its columns.

        Args:
            taken: float32 logits_NV, or states_ND of any floating-point type. A logit of -infinity means that the class
                is ruled out.
            keys_N: int64 keys of the positions, which determine what is drawn at random.

        Raises:
            NotFiniteError: for NaN or +infinity and, if the codec takes states, for a value that is too large for the
                columns.
        """

    @abstractmethod
    def decode(self, columns: dict[str, Tensor]) -> Targets:
        """Decode the columns to float32 (int64 for ids), on their device."""

    def ranked_expr(self) -> pl.Expr:
        """Intermediate result of the following expressions; evaluate it once and pass its column to each of them."""
        return pl.lit(None)

    @abstractmethod
    def ids_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        """list[i64] per position: the kept ids, most probable first (a dense codec: all classes in their order)."""

    @abstractmethod
    def log_probs_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        """list[f64] per position: log-probabilities of these ids (of a sampled id, the log of its weight)."""

    @abstractmethod
    def exact_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        """u32 per position: how many ids at the start of the list are exact; the others are sampled."""

    @abstractmethod
    def tail_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        """f64 per position: log of the mass outside the exact ids of the list, -inf if there is none."""

    def entropy_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        """f64 per position: the entropy in nats; a lower bound if the tail counts as one class.

        The frame must have the previous expressions as columns `log_probs` and `tail`.
        """
        log_p, tail = pl.element(), pl.col("tail")
        # 0 * log 0 is 0.
        inside = pl.col("log_probs").list.eval(pl.when(log_p.is_infinite()).then(0.0).otherwise(-log_p.exp() * log_p))
        # Sampled ids represent the tail themselves.
        outside = 0.0 if self.samples else pl.when(tail.is_infinite()).then(0.0).otherwise(-tail.exp() * tail)
        return inside.list.sum() + outside


class VectorCodec(Codec):
    """The base class of codecs for vectors, such as the hidden states of a layer."""

    compresses: ClassVar[bool] = False
    # Whether some channels, listed in a field `outlier_channels`, can be stored separately.
    keeps_outliers: ClassVar[bool] = False

    width: Width

    @property
    def outliers(self) -> tuple[int, ...]:
        """The channels that are stored separately."""
        return ()

    @classmethod
    def asked(cls, name: str, size: int, **parameters: Any) -> Self:
        return cls.model_validate({"name": name, "width": size, **parameters})

    def explain(self) -> str:
        """Explain how to compute a vector from the columns."""
        return f"the vector in `{self.name}.*`, kept as {self.describe()}"

    def as_begun(self, begun: Codec, same_budget: bool) -> Codec:
        but_for_outliers = {"outlier_channels": self.outliers} if self.keeps_outliers else {}
        is_alike = type(begun) is type(self) and begun.model_copy(update=but_for_outliers) == self
        return begun if is_alike else self

    def fitted(self, sample_MD: Tensor) -> Self:
        """Return this codec with parameters that are fitted to a sample of finite vectors [M, D], M >= 1."""
        return self

    def measured(self, sample_MD: Tensor) -> dict[str, float]:
        """Measure the reconstruction error on a sample of vectors [M, D], by the names used in the manifest."""
        return Reconstruction.of(sample_MD, self.decode(self.encode(sample_MD)))._asdict()

    @abstractmethod
    def encode(self, vectors_ND: Tensor) -> dict[str, Tensor]:
        """Encode vectors [N, D] of any floating-point type as the columns.

        Raises:
            NotFiniteError: for NaN, infinity, or a value that is too large for the columns.
        """

    @abstractmethod
    def decode(self, columns: dict[str, Tensor]) -> Tensor:
        """Decode the columns to float32 [N, D], on their device."""

    @abstractmethod
    def vector_expr(self) -> pl.Expr:
        """list[f32] per position: the vector."""
