"""The codec of large vocabularies: some ids of each position, one whole number each.

Every kept id is one entry: `gap * 2 ** code_bits + code`. Ids rise within a position, and a gap is how many ids were
skipped, so that a set of ids costs about what there are sets to choose from, and no order is paid for. A code is the
probability on a power scale (see power.py). The entries are stored in byte planes, which ZSTD then finds easy: by
Parquet where positions differ in how many they have, else by us (see planes.py).

Where the tail is sampled, the sampled ids come after the exact ones; the first of their gaps goes round the end of the
vocabulary, so that in every case `ids = (running sum of (gap + 1) - 1) mod vocabulary`.

Shapes: N positions, K most that a position keeps, E entries.
"""

import math
from typing import Literal

import polars as pl
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from shared.dump.codecs import planes, power
from shared.dump.codecs.base import Column, DistributionCodec, NotFiniteError, counts_of
from shared.dump.codecs.selection.rules import Draws, Kept, Selection, Threshold, TopK, TopP, owners_and_ranks
from shared.dump.codecs.selection.softmax import Softmax
from shared.dump.codecs.targets import SparseTargets

DEFAULT_LEVELS = 130
MOST_LEVELS = 65_000
# Ids are smaller than this, which leaves room for their codes in an int64.
_ID_LIMIT = 2**40
# 8 MB of float32, which bounds the memory. 2**24 at once saved nothing at 30,522 ids and up to a fifth at 152,064.
_RUN_VALUES = 2**21
_TAIL_LEVELS = {8: 255, 16: 65_535}


class Sparse(DistributionCodec):
    """Ids by a rule, with their probabilities as codes, and the mass outside the exact ids.

    A probability p comes back as q with |p ** 0.4 - q ** 0.4| <= 0.5 / levels (the most probable one, which is kept
    apart from the next, within 1.5 / levels); so does the mass outside, with 255 levels, or 65,535 where `levels` is
    above 250. A sampled id weighs exactly the threshold, a drawn one exactly how often it was drawn.

    Columns: `entries`, or `entries_0`, `entries_1`, ... where they are `in_planes` (top-k alone); `tail`; `floor`, the
    position's smallest code, where the rule does not bound it (top-k, top-p); `log_sums` where temperatures are
    declared, float16; `entropy` of the whole distribution in nats where it is asked for, float16.
    """

    codec: Literal["sparse"] = "sparse"
    selection: Selection
    vocabulary: int = Field(ge=1, lt=_ID_LIMIT)
    levels: int = Field(default=DEFAULT_LEVELS, ge=8, le=MOST_LEVELS)
    temperatures: tuple[float, ...] = ()
    entropy: bool = False
    in_planes: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Sparse":
        if self.in_planes and self._fixed_count is None:
            raise ValueError("planes are for rules that keep the same number of ids everywhere")
        if any(not 0 < value < math.inf or value == 1 for value in self.temperatures):
            raise ValueError("temperatures are positive numbers other than 1")
        return self

    @property
    def code_bits(self) -> int:
        """Bits of an entry that hold its code."""
        return 8 if self.levels <= 250 else 16

    @property
    def samples(self) -> bool:
        return self.selection.samples

    @property
    def has_exact_ids(self) -> bool:
        return not isinstance(self.selection, Draws)

    @property
    def _below(self) -> int:
        """What every entry is smaller than."""
        return self.vocabulary << self.code_bits

    @property
    def _entries(self) -> Column:
        return Column(f"{self.name}.entries", "int32" if self._below <= 2**31 else "int64", None)

    @property
    def _wide(self) -> torch.dtype:
        return torch.int32 if self._entries.dtype == "int32" else torch.int64

    @property
    def _planes(self) -> tuple[Column, ...]:
        """The columns in place of `_entries`, if any."""
        if not self.in_planes or self._fixed_count is None:
            return ()
        return planes.plane_columns(self._entries.name, self._below, self._fixed_count)

    @property
    def _small(self) -> str:
        return "uint8" if self.code_bits == 8 else "uint16"

    @property
    def _tail(self) -> Column:
        return Column(f"{self.name}.tail", self._small)

    @property
    def _floor(self) -> Column | None:
        return Column(f"{self.name}.floor", self._small) if isinstance(self.selection, TopK | TopP) else None

    @property
    def _log_sums(self) -> Column | None:
        return Column(f"{self.name}.log_sums", "float16", len(self.temperatures)) if self.temperatures else None

    @property
    def _entropy(self) -> Column | None:
        return Column(f"{self.name}.entropy", "float16") if self.entropy else None

    @property
    def columns(self) -> tuple[Column, ...]:
        entries = self._planes or (self._entries,)
        all_columns = (*entries, self._tail, self._floor, self._log_sums, self._entropy)
        return tuple(column for column in all_columns if column)

    @property
    def bytes_per_position(self) -> int:
        more_ids = 0 if self._planes else self.selection.expected_ids - 1
        return super().bytes_per_position + self._entries.bytes_per_position * more_ids

    def describe(self) -> str:
        extra = f", log-sum-exp at T = {', '.join(f'{t:g}' for t in self.temperatures)}" if self.temperatures else ""
        precision = "" if isinstance(self.selection, Draws) else f", {self.levels:,} levels"
        extra += ", entropy" if self.entropy else ""
        return f"{self.selection.describe()} of {self.vocabulary:,} ids{precision}{extra}"

    def explain(self) -> str:
        """How to read the columns without Lectern."""
        factor, name = 2**self.code_bits, self._entries.name
        lines = [
            f"The entries of a position are `{name}_0 + 256 * {name}_1 + 65536 * {name}_2`, and so on over all of "
            "these columns."
        ] * bool(self._planes)
        lines += [
            f"An entry of `{name}` is one id: `entry // {factor}` ids were skipped since the one before it, so that "
            f"ids are `(running sum of (entry // {factor} + 1) - 1) % {self.vocabulary}`, and `entry % {factor}` is "
            "its code."
        ]
        if isinstance(self.selection, Draws):
            lines.append(f"The code is how often it was drawn, out of {self.selection.draws}.")
        else:
            floor = f" plus the position's `{self._floor.name}`" if self._floor else " minus 1" if self.samples else ""
            lines.append(
                f"Its probability is `(c / {self.levels}) ** {1 / power.EXPONENT:g}` where c is the code{floor}."
            )
        if isinstance(self.selection, Threshold) and self.samples:
            lines.append(f"Code 0 is a sampled id: it weighs {self.selection.threshold:g}.")
        lines.append(
            f"The mass outside the exact ids is `({self._tail.name} / {_TAIL_LEVELS[self.code_bits]}) ** "
            f"{1 / power.EXPONENT:g}`."
        )
        if self._entropy is not None:
            lines.append(f"`{self._entropy.name}` is the entropy of the whole distribution, in nats.")
        return "\n".join(lines)

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
        """What a rule kept -> the columns `entries`, `tail` and `floor`."""
        counts_N = kept.counts_N
        owners_E, ranks_E = owners_and_ranks(counts_N)
        columns = {}
        if kept.times_E is not None:
            codes_E = kept.times_E.int()
        else:
            codes_E = self._probability_codes(kept, owners_E, ranks_E)
            if self._floor is not None:
                floor_N = _reduced(codes_E.float(), "min", counts_N).int()
                codes_E = codes_E - floor_N.index_select(0, owners_E)
                columns[self._floor.name] = floor_N.to(_torch_small(self.code_bits))
            elif self.samples:
                # 0 says that an id is sampled.
                codes_E = torch.where(ranks_E < kept.exact_N.index_select(0, owners_E), codes_E + 1, 0)
        ids_E = kept.ids_E.to(self._wide)
        before_E = torch.where(ranks_E > 0, ids_E.roll(1), -1)
        gaps_E = ids_E - before_E - 1
        gaps_E = torch.where(gaps_E < 0, gaps_E + self.vocabulary, gaps_E)
        entries_E = (gaps_E << self.code_bits) | codes_E.to(self._wide)
        if self._planes:
            columns |= planes.split(entries_E, self._planes)
        else:
            columns |= {self._entries.name: entries_E, counts_of(self._entries.name): counts_N.int()}
        tail_N = power.to_codes(kept.tail_N, _TAIL_LEVELS[self.code_bits])
        columns[self._tail.name] = tail_N.to(_torch_small(self.code_bits))
        return columns

    def _probability_codes(self, kept: Kept, owners_E: Tensor, ranks_E: Tensor) -> Tensor:
        """Codes of log-probabilities, where the most probable id of a position is ahead of the next by one at least:
        the teacher's first choice must survive the rounding."""
        codes_E = power.to_codes(kept.log_probs_E, self.levels)
        is_exact_E = ranks_E < kept.exact_N.index_select(0, owners_E)
        log_probs_E = kept.log_probs_E.masked_fill(~is_exact_E, -torch.inf)
        best_N = _reduced(log_probs_E, "max", kept.counts_N)
        is_best_E = log_probs_E == best_N.index_select(0, owners_E)
        others_E = codes_E.float().masked_fill(is_best_E | ~is_exact_E, -torch.inf)
        second_E = _reduced(others_E, "max", kept.counts_N).index_select(0, owners_E)
        return codes_E + (is_best_E & (codes_E == second_E)).int()

    def decode(self, columns: dict[str, Tensor]) -> SparseTargets:
        entries_E = (
            planes.join(columns, self._planes, self._wide).flatten() if self._planes else columns[self._entries.name]
        )
        codes_E = entries_E & ((1 << self.code_bits) - 1)
        steps_E = (entries_E >> self.code_bits) + 1
        floor_N = columns[self._floor.name].to(codes_E.dtype) if self._floor is not None else None
        fixed, sampled_NK = self._fixed_count, None
        if fixed is not None:
            assert floor_N is not None
            ids_NK = steps_E.view(-1, fixed).cumsum(1, dtype=torch.int64) - 1
            log_probs_NK = self._log_probs(codes_E.view(-1, fixed) + floor_N[:, None])
        else:
            counts_N = columns[counts_of(self._entries.name)].long()
            owners_E, ranks_E = owners_and_ranks(counts_N)
            running_E = steps_E.cumsum(0, dtype=torch.int64)
            # What the running sum was before each position's first entry.
            before_N = functional.pad(running_E, (1, 0)).index_select(0, counts_N.cumsum(0) - counts_N)
            ids_E = (running_E - before_N.index_select(0, owners_E) - 1) % self.vocabulary
            # One at least, where there is no position at all: nothing can be said about the largest of none.
            shape = (len(counts_N), int(counts_N.max()) if len(counts_N) else 1)
            places_E = owners_E * shape[1] + ranks_E

            def padded(values_E: Tensor, filling: float) -> Tensor:
                flat = torch.full((shape[0] * shape[1],), filling, dtype=values_E.dtype, device=values_E.device)
                return flat.scatter_(0, places_E, values_E).view(shape)

            if floor_N is not None:
                codes_E = codes_E + floor_N.index_select(0, owners_E)
            ids_NK, log_probs_NK = padded(ids_E, 0), padded(self._log_probs(codes_E), -torch.inf)
            if self.samples:
                is_sampled_E = codes_E == 0 if self.has_exact_ids else torch.ones_like(codes_E, dtype=torch.bool)
                sampled_NK = padded(is_sampled_E, False)
        return SparseTargets(ids_NK, log_probs_NK, self._decoded_tail(columns), sampled_NK, self._decoded_sums(columns))

    @property
    def _fixed_count(self) -> int | None:
        """How many ids every position keeps, where that is fixed."""
        return min(self.selection.k, self.vocabulary) if isinstance(self.selection, TopK) else None

    def _log_probs(self, codes: Tensor) -> Tensor:
        """Codes -> log-probabilities or, of sampled ids, log weights: a look-up."""
        if isinstance(self.selection, Draws):
            times = torch.arange(256, device=codes.device, dtype=torch.float64)
            values = (times / self.selection.draws).log().float()
        else:
            values = power.table(self.levels, codes.device)
            if isinstance(self.selection, Threshold) and self.samples:
                values = torch.cat([values.new_tensor([math.log(self.selection.threshold)]), values])
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
        """list[i64] a position, most probable first: code * 2 ** 40 + (2 ** 40 - 1 - id)."""
        entry, factor = pl.element().cast(pl.Int64), 2**self.code_bits
        ids = ((entry // factor + 1).cum_sum() - 1) % self.vocabulary
        entries = planes.join_expr(self._planes) if self._planes else self._entries.expr()
        keys = entries.list.eval(entry % factor * _ID_LIMIT + (_ID_LIMIT - 1) - ids)
        if self._floor is not None:
            keys = keys + self._floor.expr().cast(pl.Int64) * _ID_LIMIT
        return keys.list.sort(descending=True)

    def ids_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        ranked = self.ranked_expr() if ranked is None else ranked
        return (_ID_LIMIT - 1) - ranked % _ID_LIMIT

    def log_probs_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        ranked = self.ranked_expr() if ranked is None else ranked
        code = pl.element() // _ID_LIMIT
        if isinstance(self.selection, Draws):
            return ranked.list.eval((code / self.selection.draws).log())
        if not self.samples:
            return ranked.list.eval(power.log_probs_expr(code, self.levels))
        assert isinstance(self.selection, Threshold)
        known = power.log_probs_expr(code - 1, self.levels)
        sampled = math.log(self.selection.threshold)
        return ranked.list.eval(pl.when(code == 0).then(sampled).otherwise(known))

    def exact_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        if not self.has_exact_ids:
            return pl.lit(0, dtype=pl.UInt32)
        ranked = self.ranked_expr() if ranked is None else ranked
        if not self.samples:
            return ranked.list.len().cast(pl.UInt32)
        return ranked.list.eval((pl.element() >= _ID_LIMIT).cast(pl.UInt32)).list.sum()

    def tail_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        if self._fixed_count == self.vocabulary:
            return pl.lit(float("-inf"))
        return power.log_probs_expr(self._tail.expr().cast(pl.Int32), _TAIL_LEVELS[self.code_bits])

    def entropy_expr(self, ranked: pl.Expr | None = None) -> pl.Expr:
        if self._entropy is None:
            return super().entropy_expr(ranked)
        return self._entropy.expr().cast(pl.Float64)


def _run_positions(logits_NV: Tensor) -> int:
    """How many positions to look at at a time: on a CPU a few megabytes, elsewhere all of them."""
    return max(1, _RUN_VALUES // logits_NV.shape[1] if logits_NV.device.type == "cpu" else len(logits_NV))


def _reduced(values_E: Tensor, how: Literal["min", "max"], counts_N: Tensor) -> Tensor:
    """The least or the largest value of each position, [N] (torch refuses to reduce no segments at all)."""
    return torch.segment_reduce(values_E, how, lengths=counts_N) if len(counts_N) else values_E


def _torch_small(code_bits: int) -> torch.dtype:
    return torch.uint8 if code_bits == 8 else torch.uint16
