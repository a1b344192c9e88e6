"""The codec of mixtures: the teacher's logits for rows whose word embeddings were mixed with those of other rows
(MixKD, Liang et al. 2021, arXiv 2011.00593).

Each row has DRAWS mixtures. A mixture is the number of the partner's row, the weight lambda of the row itself (the
partner's is 1 - lambda), and a logit for each class.

Shapes: R rows, D draws, C classes.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from shared.dump.codecs.base import Codec, refuse_broken
from shared.dump.codecs.bounds import require_finite, require_within
from shared.dump.codecs.columns import Column, counts_of
from shared.dump.facts import ALPHAS, MOST_DRAWS


class DecodedMixtures(NamedTuple):
    """The mixtures of some rows: int64 partners_RD, float32 weights_RD and logits_RDC."""

    partners_RD: Tensor
    weights_RD: Tensor
    logits_RDC: Tensor


class Mixtures(Codec):
    """A partner, a lambda (float16, as the teacher used it) and all logits (float32) for each of a row's draws."""

    needs_sample: ClassVar[bool] = False

    codec: Literal["mixtures"] = "mixtures"
    draws: int = Field(ge=1, le=MOST_DRAWS)
    alpha: float = Field(ge=ALPHAS[0], le=ALPHAS[1])
    classes: int = Field(ge=1)

    @classmethod
    def asked(cls, name: str, size: int, **parameters: Any) -> "Mixtures":
        return cls.model_validate({"name": name, "classes": size, **parameters})

    @property
    def outcomes(self) -> int:
        return self.classes

    @property
    def partner_column(self) -> str:
        """The name of the column of partners."""
        return f"{self.name}.partner"

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            Column(self.partner_column, "int64", None),
            Column(f"{self.name}.lambda", "float16", None),
            Column(f"{self.name}.logits", "float32", None),
        )

    @property
    def bytes_per_position(self) -> int:
        return self.draws * (8 + 2 + 4 * self.classes)

    @property
    def _lengths(self) -> dict[str, int]:
        """The number of values of a row in each column."""
        return dict(zip((column.name for column in self.columns), self._widths, strict=True))

    @property
    def _widths(self) -> tuple[int, int, int]:
        return self.draws, self.draws, self.draws * self.classes

    def describe(self) -> str:
        return f"{self.draws} a row, lambda from Beta({self.alpha:g}, {self.alpha:g}), all {self.classes:,} logits"

    def explain(self) -> str:
        partner, weight, logits = (column.name for column in self.columns)
        return (
            f"A row has {self.draws} mixtures. In each, the teacher read lambda * (the row's word embeddings) + "
            f"(1 - lambda) * (the partner's), both filled up with the padding token to the longer one's length; "
            f"`{partner}` is the partner's `row`, `{weight}` is lambda, and `{logits}` has {self.classes} logits for "
            "each mixture, one mixture after the other. `shared.Dump(folder).mixtures()` has a row for each mixture."
        )

    def check(self, columns: Mapping[str, NDArray[Any]]) -> None:
        partner, weight, logits = (column.name for column in self.columns)
        for name, length in self._lengths.items():
            if name in columns and (columns[counts_of(name)] != length).any():
                raise ValueError(f"column {name!r} has lists of other lengths than {length}")
        if partner in columns:
            require_within(partner, columns[partner], 0, np.iinfo(np.int64).max)
        if weight in columns:
            require_finite(weight, columns[weight])
            require_within(weight, columns[weight], 0, 1)
        if logits in columns:
            require_finite(logits, columns[logits])

    def check_rows(self, columns: Mapping[str, NDArray[Any]], rows: NDArray[np.int64]) -> None:
        partners = columns.get(self.partner_column)
        if partners is not None and not (is_there := np.isin(partners, rows)).all():
            stranger = partners[~is_there][0]
            raise ValueError(f"column {self.partner_column!r} names row {stranger}, which is not in this row group")

    def encode(self, partners_RD: Tensor, weights_RD: Tensor, logits_RDC: Tensor) -> dict[str, Tensor]:
        """Encode int64 partners, float16 weights and float32 logits as the columns.

        Raises:
            NotFiniteError: for NaN or infinity in the logits of a row.
        """
        refuse_broken(~logits_RDC.isfinite().flatten(1).all(1))
        flat = {}
        values = (partners_RD, weights_RD, logits_RDC)
        for (name, length), value in zip(self._lengths.items(), values, strict=True):
            flat[name] = value.flatten()
            flat[counts_of(name)] = value.new_full((len(value),), length).int()
        return flat

    def partners(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """Return the numbers of the partners' rows, [R, D]."""
        return columns[self.columns[0].name].reshape(-1, self.draws)

    def weights(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return lambda, [R, D]."""
        return columns[self.columns[1].name].reshape(-1, self.draws).astype(np.float32)

    def decode(self, columns: dict[str, Tensor]) -> DecodedMixtures:
        partners, weights, logits = (columns[column.name] for column in self.columns)
        return DecodedMixtures(
            partners.reshape(-1, self.draws),
            weights.reshape(-1, self.draws).float(),
            logits.reshape(-1, self.draws, self.classes).float(),
        )

    def per_draw(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Return one row per mixture, from raw columns: row, draw, partner, lambda and logits (a list of float32)."""
        partner, weight, logits = (pl.col(column.name).list.first() for column in self.columns)
        draws = pl.lit(list(range(self.draws)), dtype=pl.List(pl.Int32))
        of_row = rows.select(
            "row", draws.alias("draw"), partner.alias("partner"), weight.alias("lambda"), logits.alias("logits")
        )
        of_draw = of_row.explode("draw", "partner", "lambda")
        mine = pl.col("logits").list.slice(pl.col("draw") * self.classes, self.classes)
        return of_draw.with_columns(pl.col("lambda").cast(pl.Float32), mine.alias("logits"))
