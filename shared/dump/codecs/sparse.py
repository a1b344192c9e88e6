"""The codec for large vocabularies: it keeps some ids of each position, as one integer each.

Each kept id is one entry, which holds the id and a code (see coding/entries.py). The code is the probability on a power
scale (see coding/power.py). Entries are stored in byte planes, which ZSTD compresses well: in planes made by Parquet if
the number of entries varies between positions, else in planes made here. Sampled ids come after the exact ones.

Shapes: N positions, V vocabulary, K most ids of a position, E entries of all positions.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from shared.dump.codecs.base import Codec, DistributionCodec, NotFiniteError, Sample
from shared.dump.codecs.bounds import require_finite, require_within
from shared.dump.codecs.coding import power
from shared.dump.codecs.coding.entries import ID_LIMIT, Entries
from shared.dump.codecs.coding.explanation import codes_explained
from shared.dump.codecs.coding.losses import losses_of
from shared.dump.codecs.columns import Column
from shared.dump.codecs.selection.budget import met_by
from shared.dump.codecs.selection.rule import Kept, Rule, owners_and_ranks
from shared.dump.codecs.selection.rules import Selection
from shared.dump.codecs.selection.softmax import Softmax
from shared.dump.codecs.targets import SparseTargets

DEFAULT_LEVELS = 130
MOST_LEVELS = 65_000
# 8 MB of float32, which limits the memory. With 2**24 at once, 30,522 ids took the same time, and 152,064 ids up to a
# fifth less.
_RUN_VALUES = 2**21
_TAIL_LEVELS = {8: 255, 16: 65_535}


class Sparse(DistributionCodec):
    """Ids chosen by a rule, with their probabilities as codes, and the mass outside the exact ids.

    A probability p decodes to q with |p ** 0.4 - q ** 0.4| <= 0.5 / levels (the largest one of a position within
    1.5 / levels, because its code is kept above the others). The same holds for the mass outside, with 255 levels, or
    65,535 if `levels` is above 250. A sampled id decodes to exactly the threshold, a drawn id to exactly its share of
    the draws.

    Columns:
        entries: lists; instead `entries_0`, `entries_1`, ... if the entries are `in_planes` (top-k alone).
        tail: the code of the mass outside the exact ids.
        floor: the smallest code of the position, if the rule does not bound it (top-k, top-p).
        log_sums: float16, one for each of `temperatures`, if there are any.
        entropy: float16, of the whole distribution in nats, if `entropy` is set.
    """

    codec: Literal["sparse"] = "sparse"
    selection: Selection
    vocabulary: int = Field(ge=1, lt=ID_LIMIT)
    levels: int = Field(default=DEFAULT_LEVELS, ge=8, le=MOST_LEVELS)
    temperatures: tuple[float, ...] = ()
    entropy: bool = False
    in_planes: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Sparse":
        if self.in_planes and self._fixed_count is None:
            raise ValueError("planes need a rule that keeps the same number of ids at every position")
        if any(not 0 < value < math.inf or value == 1 for value in self.temperatures):
            raise ValueError("temperatures must be positive and other than 1")
        return self

    @property
    def outcomes(self) -> int:
        return self.vocabulary

    @property
    def code_bits(self) -> int:
        """The number of bits of an entry's code."""
        return 8 if self.levels <= 250 else 16

    @property
    def samples(self) -> bool:
        return self.selection.samples

    @property
    def has_exact_ids(self) -> bool:
        return self.selection.has_exact_ids

    @classmethod
    def asked(cls, name: str, size: int, **parameters: Any) -> Self:
        return cls.model_validate({"name": name, "vocabulary": size, **parameters})

    def as_begun(self, begun: Codec, same_budget: bool) -> Codec:
        if not isinstance(begun, Sparse):
            return self
        if begun.selection == self.selection:
            return self.model_copy(update={"in_planes": begun.in_planes})
        return self.model_copy(update={"selection": self.selection.as_begun(begun.selection)}) if same_budget else self

    def within(self, budget: float, bytes_of: Callable[[Self], float]) -> Self:
        def bytes_at(rule: Rule) -> float:
            return bytes_of(self.model_copy(update={"selection": rule}))

        return self.model_copy(update={"selection": met_by(self.selection, budget, bytes_at)})

    def measured(self, sample: Sample) -> dict[str, float]:
        return losses_of(self, sample)

    @property
    def entries(self) -> Entries:
        """The storage of ids and codes."""
        return Entries(f"{self.name}.entries", self.vocabulary, self.code_bits, self._fixed_count, self.in_planes)

    @property
    def _small(self) -> str:
        return "uint8" if self.code_bits == 8 else "uint16"

    @property
    def _tail(self) -> Column:
        return Column(f"{self.name}.tail", self._small)

    @property
    def _floor(self) -> Column | None:
        return Column(f"{self.name}.floor", self._small) if self.selection.has_floors else None

    @property
    def _log_sums(self) -> Column | None:
        return Column(f"{self.name}.log_sums", "float16", len(self.temperatures)) if self.temperatures else None

    @property
    def _entropy(self) -> Column | None:
        return Column(f"{self.name}.entropy", "float16") if self.entropy else None

    @property
    def columns(self) -> tuple[Column, ...]:
        all_columns = (*self.entries.columns, self._tail, self._floor, self._log_sums, self._entropy)
        return tuple(column for column in all_columns if column)

    @property
    def bytes_per_position(self) -> int:
        more_ids = 0 if self.in_planes else self.selection.expected_ids - 1
        return super().bytes_per_position + self.entries.list_column.bytes_per_position * more_ids

    def describe(self) -> str:
        extra = f", log-sum-exp at T = {', '.join(f'{t:g}' for t in self.temperatures)}" if self.temperatures else ""
        precision = "" if self.selection.most_times else f", {self.levels:,} levels"
        extra += ", entropy" if self.entropy else ""
        return f"{self.selection.describe()} of {self.vocabulary:,} ids{precision}{extra}"

    def explain(self) -> str:
        floor = None if self._floor is None else self._floor.name
        entropy = None if self._entropy is None else self._entropy.name
        tail = {self._tail.name: _TAIL_LEVELS[self.code_bits]}
        return "\n".join([*self.entries.explain(), *codes_explained(self.selection, self.levels, floor, tail, entropy)])

    def check(self, columns: Mapping[str, NDArray[Any]]) -> None:
        floors = None if self._floor is None else columns.get(self._floor.name)
        if self._floor is not None and floors is not None:
            require_within(self._floor.name, floors, 0, self.levels)
        times = self.selection.most_times
        codes = (0, self.levels + (self.selection.sampled_weight is not None)) if times is None else (1, times)
        self.entries.check(columns, codes, self.selection.most_ids, floors)
        for column in (self._log_sums, self._entropy):
            if column is not None and column.name in columns:
                require_finite(column.name, columns[column.name])

    def encode(self, logits_NV: Tensor, keys_N: Tensor) -> dict[str, Tensor]:
        kept: list[Kept] = []
        sums: list[Tensor] = []
        entropies: list[Tensor] = []
        step = _run_positions(logits_NV)
        for start in range(0, max(1, len(logits_NV)), step):
            try:
                softmax = Softmax.of(logits_NV[start : start + step])
            except NotFiniteError as error:
                raise NotFiniteError(start + error.position) from None
            if self.temperatures:
                sums.append(torch.stack([softmax.log_sum(temperature) for temperature in self.temperatures], dim=1))
            if self.entropy:
                entropies.append(softmax.entropy())
            kept.append(self.selection.select(softmax, keys_N[start : start + step]))
        columns = self.pack(Kept.joined(kept))
        if self._log_sums is not None:
            columns[self._log_sums.name] = torch.cat(sums).half().squeeze(1)
        if self._entropy is not None:
            columns[self._entropy.name] = torch.cat(entropies).half()
        return columns

    def pack(self, kept: Kept) -> dict[str, Tensor]:
        """Encode the ids that a rule kept as the columns `entries`, `tail` and `floor`."""
        counts_N = kept.counts_N
        owners_E, ranks_E = owners_and_ranks(counts_N)
        columns = {}
        if kept.times_E is not None:
            codes_E = kept.times_E.int()
        else:
            codes_E = power.codes_of(kept, owners_E, ranks_E, self.levels)
            if self._floor is not None:
                floor_N = power.reduced(codes_E.float(), "min", counts_N).int()
                codes_E = codes_E - floor_N.index_select(0, owners_E)
                columns[self._floor.name] = floor_N.to(getattr(torch, self._small))
            elif self.samples:
                # Code 0 means that an id is sampled.
                codes_E = torch.where(ranks_E < kept.exact_N.index_select(0, owners_E), codes_E + 1, 0)
        columns |= self.entries.pack(kept.ids_E, codes_E, ranks_E, counts_N)
        tail_N = power.to_codes(kept.tail_N, _TAIL_LEVELS[self.code_bits])
        columns[self._tail.name] = tail_N.to(getattr(torch, self._small))
        return columns

    def decode(self, columns: dict[str, Tensor]) -> SparseTargets:
        ids, codes, arrangement = self.entries.unpack(columns)
        if self._floor is not None:
            codes = codes + arrangement.of_entries(columns[self._floor.name].to(codes.dtype))
        sampled_NK = None
        if self.samples:
            is_sampled = codes == 0 if self.has_exact_ids else torch.ones_like(codes, dtype=torch.bool)
            sampled_NK = arrangement.matrix(is_sampled, False)
        return SparseTargets(
            arrangement.matrix(ids, 0),
            arrangement.matrix(self._log_probs(codes), -torch.inf),
            self._decoded_tail(columns),
            sampled_NK,
            self._decoded_sums(columns),
        )

    @property
    def _fixed_count(self) -> int | None:
        """The number of ids at every position; None if it varies."""
        fixed = self.selection.fixed_ids
        return None if fixed is None else min(fixed, self.vocabulary)

    def _log_probs(self, codes: Tensor) -> Tensor:
        """Return the log-probabilities of codes (for sampled ids, log weights), by looking them up in a table."""
        if self.selection.most_times is not None:
            times = torch.arange(256, device=codes.device, dtype=torch.float64)
            values = (times / self.selection.most_times).log().float()
        else:
            values = power.table(self.levels, codes.device)
            if self.selection.sampled_weight is not None:
                values = torch.cat([values.new_tensor([math.log(self.selection.sampled_weight)]), values])
        return values.index_select(0, codes.flatten()).view(codes.shape)

    def _decoded_tail(self, columns: dict[str, Tensor]) -> Tensor:
        codes_N = columns[self._tail.name].int()
        tail_N = power.table(_TAIL_LEVELS[self.code_bits], codes_N.device).index_select(0, codes_N)
        return torch.full_like(tail_N, -torch.inf) if self._fixed_count == self.vocabulary else tail_N

    def _decoded_sums(self, columns: dict[str, Tensor]) -> dict[float, Tensor]:
        if self._log_sums is None:
            return {}
        sums = columns[self._log_sums.name].reshape(-1, len(self.temperatures)).float()
        return {temperature: sums[:, index] for index, temperature in enumerate(self.temperatures)}

    def ranked_expr(self) -> pl.Expr:
        """list[i64] per position, most probable first: code * 2 ** 40 + (2 ** 40 - 1 - id)."""
        keys = self.entries.keys_expr()
        if self._floor is not None:
            keys = keys + self._floor.expr().cast(pl.Int64) * ID_LIMIT
        return keys.list.sort(descending=True)

    def ids_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        ranked = self.ranked_expr() if ranked is None else ranked
        return (ID_LIMIT - 1) - ranked % ID_LIMIT

    def log_probs_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        ranked = self.ranked_expr() if ranked is None else ranked
        code = pl.element() // ID_LIMIT
        if self.selection.most_times is not None:
            return ranked.list.eval((code / self.selection.most_times).log())
        if self.selection.sampled_weight is None:
            return ranked.list.eval(power.log_probs_expr(code, self.levels))
        known = power.log_probs_expr(code - 1, self.levels)
        sampled = math.log(self.selection.sampled_weight)
        return ranked.list.eval(pl.when(code == 0).then(sampled).otherwise(known))

    def exact_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        if not self.has_exact_ids:
            return pl.lit(0, dtype=pl.UInt32)
        ranked = self.ranked_expr() if ranked is None else ranked
        if not self.samples:
            return ranked.list.len().cast(pl.UInt32)
        return ranked.list.eval((pl.element() >= ID_LIMIT).cast(pl.UInt32)).list.sum()

    def tail_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        if self._fixed_count == self.vocabulary:
            return pl.lit(float("-inf"))
        return power.log_probs_expr(self._tail.expr().cast(pl.Int32), _TAIL_LEVELS[self.code_bits])

    def entropy_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        if self._entropy is None:
            return super().entropy_expr(ranked)
        return self._entropy.expr().cast(pl.Float64)


def _run_positions(logits_NV: Tensor) -> int:
    """Return how many positions to encode at a time: a few megabytes on a CPU, all positions on other devices."""
    return max(1, _RUN_VALUES // logits_NV.shape[1] if logits_NV.device.type == "cpu" else len(logits_NV))
