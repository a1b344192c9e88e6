"""Vectors of low rank: coefficients in a PCA basis that a dump stores once.

A low rank costs accuracy even if it is above the student's width, because what a student can learn need not lie in the
directions of largest variance. On MiniLM's last layer (width 384), a student of width 128 had 5.8% more squared error
on other texts with rank 128 than with whole vectors, 2.4% with 192, 1.0% with 256 and 0.3% with 320 (two seeds, which
differ by 0.1%).

Shapes: N positions, D width, R rank.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self

import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from shared.dump.codecs.base import Codec, VectorCodec
from shared.dump.codecs.columns import Column, Width
from shared.dump.codecs.constants import Constants, fingerprint
from shared.dump.codecs.vectors.kinds import VECTOR_KINDS, VectorKind, kept_by
from shared.dump.codecs.vectors.outliers import OutlierChannels, require_ordinary
from shared.dump.codecs.vectors.principal import principal_components
from shared.errors import DumpError


class LowRankVectors(VectorCodec):
    """Vectors as `rank` coefficients in an orthonormal basis around a mean.

    The mean [width] and the basis [rank, width] are float32 constants in `constants_file`, identified by
    `constants_sha256`. The error is what the basis leaves out plus the error of the coefficients, which the basis
    neither increases nor decreases.

    In polars a vector is a matrix product in numpy (`map_batches`), because polars' own expressions take about ten
    times as long. The coefficients themselves are plain numbers of their codec.

    Attributes:
        coefficients: the vector codec of the coefficients.
        outlier_coefficients: its outlier channels: the first coefficients are usually much larger than the others.
    """

    codec: Literal["low-rank"] = "low-rank"
    width: Width
    rank: int = Field(ge=1)
    coefficients: VectorKind
    outlier_coefficients: OutlierChannels = ()
    constants_sha256: str

    _constants: Constants = PrivateAttr(default_factory=Constants)

    @model_validator(mode="after")
    def _parameters_fit(self) -> Self:
        if self.rank > self.width:
            raise ValueError(f"vectors of width {self.width} cannot have rank {self.rank}")
        require_ordinary(self.rank, self.outlier_coefficients)
        if self.outlier_coefficients and not VECTOR_KINDS[self.coefficients].keeps_outliers:
            raise ValueError(f"{self.coefficients} cannot store outlier coefficients separately")
        return self

    @classmethod
    def asked(cls, name: str, size: int, **parameters: Any) -> Self:
        """Return the codec with the first `rank` channels as its basis, until it is fitted to a sample."""
        facts = {"name": name, "width": size, "constants_sha256": "", **parameters}
        rank = cls.model_validate(facts).rank
        constants = {"mean": torch.zeros(size), "basis": torch.eye(rank, size)}
        return cls.model_validate({**facts, "constants_sha256": fingerprint(constants)}).with_constants(constants)

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.coefficient_codec.columns

    @cached_property
    def coefficient_codec(self) -> VectorCodec:
        """The codec of the coefficients, which are vectors of width `rank`."""
        return kept_by(self.coefficients, self.name, self.rank, self.outlier_coefficients)

    def describe(self) -> str:
        return f"rank {self.rank} in {self.coefficients}, {self.width} wide"

    def as_begun(self, begun: Codec, same_budget: bool) -> Codec:
        if not isinstance(begun, LowRankVectors):
            return self
        asked = [(codec.width, codec.rank, codec.coefficients) for codec in (self, begun)]
        return begun if asked[0] == asked[1] else self

    def fitted(self, sample_MD: Tensor) -> Self:
        mean_D, basis_RD = principal_components(sample_MD, self.rank)
        constants = {"mean": mean_D, "basis": basis_RD}
        of_coefficients = self.coefficient_codec.fitted((sample_MD.float() - mean_D) @ basis_RD.T)
        facts = {"outlier_coefficients": of_coefficients.outliers, "constants_sha256": fingerprint(constants)}
        return type(self).model_validate({**self.model_dump(), **facts}).with_constants(constants)

    def check(self, columns: Mapping[str, NDArray[Any]]) -> None:
        self.coefficient_codec.check(columns)

    def encode(self, vectors_ND: Tensor) -> dict[str, Tensor]:
        mean_D, basis_RD = self._mean_and_basis(vectors_ND.device)
        return self.coefficient_codec.encode(_product(vectors_ND.float() - mean_D, basis_RD.T))

    def decode(self, columns: dict[str, Tensor]) -> Tensor:
        coefficients_NR = self.coefficient_codec.decode(columns)
        mean_D, basis_RD = self._mean_and_basis(coefficients_NR.device)
        return _product(coefficients_NR, basis_RD) + mean_D

    def vector_expr(self) -> pl.Expr:
        mean_D, basis_RD = (tensor.numpy() for tensor in self._mean_and_basis(torch.device("cpu")))

        def product(coefficients: pl.Series) -> pl.Series:
            coefficients_NR = coefficients.list.explode().to_numpy().reshape(-1, self.rank)
            return pl.Series(coefficients_NR @ basis_RD + mean_D).arr.to_list()

        listed = self.coefficient_codec.vector_expr()
        return listed.map_batches(product, return_dtype=pl.List(pl.Float32), is_elementwise=True)

    @property
    def constants_file(self) -> str:
        return f"{self.name}.safetensors"

    def constants(self) -> dict[str, Tensor]:
        mean_D, basis_RD = self._mean_and_basis(torch.device("cpu"))
        return {"mean": mean_D, "basis": basis_RD}

    def with_constants(self, tensors: dict[str, Tensor]) -> Self:
        if fingerprint(tensors) != self.constants_sha256:
            raise DumpError(
                f"weights/{self.constants_file}: not the mean and basis that the vectors {self.name!r} were written "
                "with (their SHA-256 differs); restore the file or dump again."
            )
        copy = self.model_copy()
        copy._constants = Constants(tensors)
        return copy

    def _mean_and_basis(self, device: torch.device) -> tuple[Tensor, Tensor]:
        found = self._constants.on(
            device,
            f"the vectors {self.name!r} can't be decoded without their mean and basis, which the dump keeps in "
            f"weights/{self.constants_file}.",
        )
        return found["mean"], found["basis"]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return the matrix product in float32, also if autocast is on in a training step."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right
