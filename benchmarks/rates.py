"""Bytes and errors of one codec on one source: its size in a real shard, and the error of the decoded values.

Shapes: N positions, K largest number of ids of a position, E kept ids of all positions.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from shard_of import bytes_per_position, write
from sources import Source
from torch import Tensor

from shared.dump.codecs import Selection, Sparse, SparseTargets, Threshold, TopK, TopP
from shared.dump.codecs.selection.rule import Kept
from shared.dump.codecs.sparse import DEFAULT_LEVELS
from shared.dump.rowgroup import from_flat

COARSE_LEVELS = 30
THRESHOLDS = (0.05, 0.02, 0.01, 0.005, 0.003, 0.002, 0.0013, 0.0009, 0.0006, 0.0004)


@dataclass(frozen=True)
class Measured:
    """The measurements of one codec on one source.

    Attributes:
        columns: bytes per position of each Parquet column.
        ids: kept ids per position.
        kept_mass: the mass of the kept ids in the teacher's distribution.
        codec_kl: KL of the renormalised kept ids, exact (float64) against decoded, nats.
        end_to_end_kl: KL of the full teacher to the decoded ids and the decoded tail, spread evenly over all others.
        same_best: share of positions whose most probable id is still the most probable.
    """

    codec: Sparse
    columns: dict[str, float]
    ids: float
    kept_mass: float
    codec_kl: float
    end_to_end_kl: float
    same_best: float

    @property
    def bytes(self) -> float:
        """Bytes per position of all columns together."""
        return sum(self.columns.values())


def sparse(rule: Selection, source: Source, levels: int = DEFAULT_LEVELS) -> Sparse:
    """The codec of this rule for a source."""
    return Sparse(name="distribution", selection=rule, vocabulary=source.vocabulary, levels=levels)


def measure(codec: Sparse, source: Source) -> Measured:
    """All figures of a codec that samples nothing."""
    kept = source.candidates.select(codec.selection)
    flat = codec.pack(kept)
    targets = codec.decode(flat)
    exact_NK = exact_like(targets, kept)
    return Measured(
        codec=codec,
        columns=shard_bytes(codec, flat, source.lengths),
        ids=float(kept.counts_N.double().mean()),
        kept_mass=1 - float(kept.tail_N.exp().mean()),
        codec_kl=codec_kl(targets, exact_NK),
        end_to_end_kl=end_to_end_kl(targets, exact_NK, kept.tail_N.exp(), source),
        same_best=float((targets.log_probs_NK.argmax(1) == exact_NK.argmax(1)).double().mean()),
    )


def smallest_levels(rule: Selection, source: Source, most_kl: float) -> int:
    """The fewest levels whose codec KL is at most `most_kl`: by bisection."""
    kept = source.candidates.select(rule)
    least, most = 8, 250
    while least < most:
        middle = (least + most) // 2
        targets = (codec := sparse(rule, source, middle)).decode(codec.pack(kept))
        least, most = (least, middle) if codec_kl(targets, exact_like(targets, kept)) <= most_kl else (middle + 1, most)
    return least


def exact_like(targets: SparseTargets, kept: Kept) -> Tensor:
    """The exact log-probabilities of the decoded ids, float64 [N, K]."""
    is_there_NK = targets.log_probs_NK != -torch.inf
    if not torch.equal(targets.ids_NK[is_there_NK], kept.ids_E):
        raise ValueError("the ids that were decoded are not those that were kept")
    exact_NK = torch.full(targets.ids_NK.shape, -torch.inf, dtype=torch.float64)
    exact_NK[is_there_NK] = kept.log_probs_E.double()
    return exact_NK


def codec_kl(targets: SparseTargets, exact_NK: Tensor) -> float:
    """KL of the renormalised kept ids, exact against decoded, in nats per position."""
    log_p_NK = exact_NK.log_softmax(-1)
    log_ratio_NK = log_p_NK - targets.log_probs_NK.double().log_softmax(-1)
    return float((log_p_NK.exp() * log_ratio_NK.masked_fill(exact_NK == -torch.inf, 0.0)).sum(-1).mean())


def end_to_end_kl(targets: SparseTargets, exact_NK: Tensor, outside_N: Tensor, source: Source) -> float:
    """KL of the full teacher to the decoded distribution, with the tail spread evenly over all other ids."""
    q_NK, tail_N = targets.log_probs_NK.double().exp(), targets.tail_N.double().exp()
    total_N = q_NK.sum(-1) + tail_N
    others_N = source.vocabulary - (exact_NK != -torch.inf).sum(-1)
    log_q_NK = (q_NK / total_N[:, None]).log().masked_fill(exact_NK == -torch.inf, 0.0)
    cross_N = (exact_NK.exp() * log_q_NK).sum(-1) + outside_N * (tail_N / total_N / others_N.clamp(min=1)).log()
    return float((-source.candidates.entropy_N - cross_N).mean())


def shard_bytes(codec: Sparse, flat: dict[str, Tensor], lengths: Sequence[int]) -> dict[str, float]:
    """Bytes per position of each column, in a shard that is written for the measurement."""
    columns = from_flat(codec.columns, {name: values.numpy() for name, values in flat.items()})
    with tempfile.TemporaryDirectory() as folder:
        write(codec, columns, lengths, Path(folder))
        return bytes_per_position(codec, Path(folder), sum(lengths))


def plain_lists(
    ids_NK: Tensor, log_probs_NK: Tensor, lengths: Sequence[int], file: Path, value_type: pa.DataType
) -> None:
    """The baseline: plain lists of int32 ids and bfloat16 log-probabilities, most probable first, with ZSTD.

    Each row has a list of one list of K per position. Parquet has no bfloat16, so it is stored as `value_type`.
    """
    k = ids_NK.shape[1]

    def nested(values: pa.Array) -> pa.Array:
        inner = pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, k), pa.int32()), values)
        return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), inner)

    values = log_probs_NK.bfloat16().float().numpy().ravel()
    values = values.astype(np.float16) if value_type == pa.float16() else values
    table = pa.table({"ids": nested(pa.array(ids_NK.int().numpy().ravel())), "log_probs": nested(pa.array(values))})
    rows = max(1, len(lengths) * 10_000 // sum(lengths))
    pq.write_table(table, file, row_group_size=rows, compression="zstd", write_page_checksum=True)


def falling_top(source: Source, k: int) -> tuple[Tensor, Tensor]:
    """(ids, float32 log-probabilities) of the k most probable ids, most probable first, [N, k]."""
    candidates = source.candidates
    top_NK, places_NK = (candidates.shifted_NM - candidates.total_N1.log()).topk(k, dim=-1)
    return candidates.ids_NM.gather(-1, places_NK), top_NK.float()


def plain_bytes(source: Source, k: int) -> dict[str, float]:
    """Bytes per position of plain lists, by the stored type of the values."""
    found = {}
    for value_type in (pa.float16(), pa.float32()):
        with tempfile.TemporaryDirectory() as folder:
            plain_lists(*falling_top(source, k), source.lengths, Path(folder) / "plain.parquet", value_type)
            group_sizes = pq.ParquetFile(Path(folder) / "plain.parquet").metadata
            size = sum(
                group_sizes.row_group(group).column(leaf).total_compressed_size
                for group in range(group_sizes.num_row_groups)
                for leaf in range(group_sizes.num_columns)
            )
            found[str(value_type)] = size / sum(source.lengths)
    return found


def bound_bytes(vocabulary: int, k: int) -> float:
    """Bytes of a set of k ids if all sets are equally likely: log2 C(V, k) / 8."""
    log_sets = math.lgamma(vocabulary + 1) - math.lgamma(k + 1) - math.lgamma(vocabulary - k + 1)
    return log_sets / math.log(2) / 8


CURVES: dict[str, tuple[Callable[[float], Selection], tuple[float, ...], int]] = {
    "top-k": (lambda k: TopK(k=int(k)), (5, 10, 20, 35, 50, 80, 128, 200, 320), DEFAULT_LEVELS),
    "top-p": (lambda p: TopP(p=p, k=1024), (0.5, 0.7, 0.8, 0.88, 0.93, 0.96, 0.975, 0.985), DEFAULT_LEVELS),
    "threshold": (
        lambda t: Threshold(threshold=t, tail="mass"),
        THRESHOLDS,
        DEFAULT_LEVELS,
    ),
    f"threshold, {COARSE_LEVELS} levels": (
        lambda t: Threshold(threshold=t, tail="mass"),
        THRESHOLDS,
        COARSE_LEVELS,
    ),
}


def curves(source: Source) -> dict[str, list[Measured]]:
    """Rate and distortion by rule, in increasing order of bytes."""
    return {
        name: [measure(sparse(rule(value), source, levels), source) for value in values]
        for name, (rule, values, levels) in CURVES.items()
    }


def kl_at(curve: list[Measured], size: float) -> float:
    """End-to-end KL at a number of bytes, by linear interpolation of logarithms; NaN outside the measured range."""
    return _between([m.bytes for m in curve], [m.end_to_end_kl for m in curve], size)


def bytes_at(curve: list[Measured], kl: float) -> float:
    """Bytes at this end-to-end KL, by the same interpolation."""
    return _between([m.end_to_end_kl for m in reversed(curve)], [m.bytes for m in reversed(curve)], kl)


def _between(rising: list[float], values: list[float], at: float) -> float:
    found = np.interp(math.log(at), np.log(rising), np.log(values), left=math.nan, right=math.nan)
    return math.exp(found)
