"""What every codec is: how a signal's tensors become plain Parquet columns and come back.

A codec is its own description: a frozen pydantic model whose fields are the parameters that the manifest keeps.
`encode` runs on the teacher's device, `decode` on the student's, and its expressions in polars.

Shapes: N positions, M positions of a sample, V vocabulary or classes, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, Protocol, Self

import polars as pl
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from shared.dump.codecs.columns import Column
from shared.dump.codecs.targets import Targets
from shared.dump.codecs.vectors.reconstruction import Reconstruction


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
    # Whether a sample of what it is given tells anything that is worth a teacher's forward pass.
    needs_sample: ClassVar[bool] = True

    name: str

    @classmethod
    @abstractmethod
    def asked(cls, name: str, size: int, **parameters: Any) -> Self:
        """The codec as it is asked for, before it is fitted to a sample, of distributions over `size` classes or of
        vectors `size` wide.

        Raises:
            ValidationError: for a parameter that it cannot have.
        """

    @property
    @abstractmethod
    def columns(self) -> tuple[Column, ...]:
        """Its Parquet columns."""

    @abstractmethod
    def decode(self, columns: dict[str, Tensor]) -> Any:
        """What the columns hold, on their device."""

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

    def as_begun(self, begun: "Codec", same_budget: bool) -> "Codec":
        """What a dump that was begun with the codec `begun` goes on with where this one is asked for: this one, with
        what was fitted to a sample then. `same_budget`: both were asked for with the same bytes a position.
        """
        return self

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


class Sample(Protocol):
    """What a distribution codec is given of a sample of rows: it may be looked at more than once."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Slice by slice what the codec `takes` (logits_NV or states_ND), and the positions' keys_N."""


class DistributionCodec(Codec):
    """A codec of distributions over classes or a vocabulary.

    `takes` says what `encode` is given: logits, or the states that the output projection makes logits of.
    """

    takes: ClassVar[Literal["logits", "states"]] = "logits"
    # Whether every logit comes back, but for rounding.
    keeps_all_logits: ClassVar[bool] = False

    @property
    def samples(self) -> bool:
        """Whether sampled ids stand for the tail."""
        return False

    @property
    def has_exact_ids(self) -> bool:
        """Whether the probability of some ids is known."""
        return True

    @classmethod
    def asked(cls, name: str, size: int, **parameters: Any) -> Self:
        return cls.model_validate({"name": name, "classes": size, **parameters})

    def fitted(self, sample: Sample) -> Self:
        """This codec with the parameters that are fitted to a sample."""
        return self

    def within(self, budget: float, bytes_of: Callable[[Self], float]) -> Self:
        """This codec with the parameters with which it takes about `budget` bytes a position, as `bytes_of` weighs it.

        Raises:
            ValueError: where no parameters do, or it has none that matter.
        """
        raise ValueError(f"what is kept of {self.name!r} has no size to choose")

    def measured(self, sample: Sample) -> dict[str, float]:
        """What it loses of a sample, by the names that the manifest has; empty where that is nothing."""
        return {}

    @abstractmethod
    def encode(self, taken: Tensor, keys_N: Tensor, /) -> dict[str, Tensor]:
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
    # Whether some channels can be kept apart from the others, in a field `outlier_channels`.
    keeps_outliers: ClassVar[bool] = False

    width: int

    @property
    def outliers(self) -> tuple[int, ...]:
        """The channels that are kept apart."""
        return ()

    @classmethod
    def asked(cls, name: str, size: int, **parameters: Any) -> Self:
        return cls.model_validate({"name": name, "width": size, **parameters})

    def explain(self) -> str:
        """What a vector is, in terms of the columns."""
        return f"the vector in `{self.name}.*`, kept as {self.describe()}"

    def as_begun(self, begun: Codec, same_budget: bool) -> Codec:
        but_for_outliers = {"outlier_channels": self.outliers} if self.keeps_outliers else {}
        is_alike = type(begun) is type(self) and begun.model_copy(update=but_for_outliers) == self
        return begun if is_alike else self

    def fitted(self, sample_MD: Tensor) -> Self:
        """This codec with what is fitted to a sample of finite vectors [M, D], M >= 1."""
        return self

    def measured(self, sample_MD: Tensor) -> dict[str, float]:
        """What it loses of a sample of vectors [M, D]."""
        return Reconstruction.of(sample_MD, self.decode(self.encode(sample_MD)))._asdict()

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
