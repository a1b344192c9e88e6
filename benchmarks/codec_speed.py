"""The speed of writing and reading a codec's shards: positions per CPU second, against plain lists in Parquet.

Medians of interleaved runs; one thread.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rates import falling_top, plain_lists, sparse
from shard_of import manifest_of, write
from sources import Source
from torch import Tensor

from shared.dump.codecs import Selection, Sparse, SparseTargets, TopK
from shared.dump.codecs.selection.softmax import Softmax
from shared.dump.integrity.receipts import read_receipt, shard_path
from shared.dump.rowgroup import from_flat, to_flat
from shared.dump.shards import open_shard, read_row_group
from shared.storage import Folder


@dataclass(frozen=True)
class Speed:
    """Positions per CPU second of ours and of plain lists."""

    ours: float
    plain: float


def decoding(rule: Selection, source: Source, plain_k: int, positions: int, runs: int) -> Speed:
    """From the file to ids (int64) and log-probabilities (float32) in tensors."""
    codec = sparse(rule, source)
    times = -(-positions // len(source.hidden_ND))
    flat = codec.pack(source.candidates.select(rule)) if not codec.samples else sampled(codec, source)
    with tempfile.TemporaryDirectory() as name:
        folder, plain = Path(name), Path(name) / "plain.parquet"
        write_tiled(codec, [flat] * times, source, folder)
        top = [tensor.repeat(times, 1) for tensor in falling_top(source, plain_k)]
        plain_lists(top[0], top[1], source.lengths * times, plain, pa.float32())
        check(codec, flat, folder)
        seconds = interleaved([lambda: read(codec, folder), lambda: read_plain(plain, plain_k)], runs)
    return Speed(*(times * len(source.hidden_ND) / each for each in seconds))


def encoding(k: int, source: Source, positions: int, runs: int) -> Speed:
    """From the k most probable ids, selected and sorted, to the file with its checksums, batch by batch."""
    codec = sparse(TopK(k=k), source)
    times = -(-positions // len(source.hidden_ND))
    kept = source.candidates.select(codec.selection)
    top = [tensor.repeat(times, 1) for tensor in falling_top(source, k)]
    with tempfile.TemporaryDirectory() as name:
        folder, plain = Path(name), Path(name) / "plain.parquet"
        sides = [
            lambda: write_tiled(codec, [codec.pack(kept) for _ in range(times)], source, folder),
            lambda: plain_lists(top[0], top[1], source.lengths * times, plain, pa.float32()),
        ]
        seconds = interleaved(sides, runs)
    return Speed(*(times * len(source.hidden_ND) / each for each in seconds))


def selecting(rule: Selection, source: Source) -> float:
    """Positions per CPU second of softmax and selection over the vocabulary: the teacher's side."""
    few = source.first(min(1024, len(source.hidden_ND)))
    keys_N, seconds = few.keys(0), 0.0
    for part, logits_NV in few.slices():
        start = time.process_time()
        rule.select(Softmax.of(logits_NV), keys_N[part])
        seconds += time.process_time() - start
    return len(few.hidden_ND) / seconds


def sampled(codec: Sparse, source: Source) -> dict[str, Tensor]:
    """The columns of a codec that needs the logits of the whole vocabulary."""
    keys_N = source.keys(0)
    parts = [codec.encode(logits_NV, keys_N[part]) for part, logits_NV in source.slices()]
    return {name: torch.cat([columns[name] for columns in parts]) for name in parts[0]}


def write_tiled(codec: Sparse, parts: list[dict[str, Tensor]], source: Source, folder: Path) -> None:
    """Write the source's rows into one shard, once for each part."""
    flat: dict[str, Any] = {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}
    write(codec, from_flat(codec.columns, flat), source.lengths * len(parts), folder)


def read(codec: Sparse, folder: Path) -> list[SparseTargets]:
    """Decode a shard row group by row group; only the last one is kept."""
    path = Folder.of(folder)
    receipt = read_receipt(path, 0, None)
    assert receipt is not None
    manifest, shard = manifest_of(codec), open_shard(shard_path(path, 0), receipt)
    names = [column.name for column in codec.columns]
    last: list[SparseTargets] = []
    for group in range(shard.num_row_groups):
        flat = to_flat(read_row_group(manifest, shard, group, names).columns)
        last = [codec.decode({name: torch.from_numpy(values) for name, values in flat.items()})]
    return last


def read_plain(file: Path, k: int) -> list[Tensor]:
    """The same for plain lists."""
    shard = pq.ParquetFile(file, page_checksum_verification=True)
    last: list[Tensor] = []
    for group in range(shard.num_row_groups):
        table = shard.read_row_group(group, use_threads=False)
        ids, log_probs = (table[name].combine_chunks().flatten().flatten().to_numpy() for name in ("ids", "log_probs"))
        last = [torch.from_numpy(ids).view(-1, k).long(), torch.from_numpy(log_probs).view(-1, k)]
    return last


def check(codec: Sparse, flat: dict[str, Tensor], folder: Path) -> None:
    """Check that the values read are those written, with the last row group."""
    found, wanted = read(codec, folder)[0], codec.decode(flat)
    width = found.ids_NK.shape[1]
    count = min(len(found.tail_N), len(wanted.tail_N))
    same = torch.equal(found.ids_NK[-count:], wanted.ids_NK[-count:, :width])
    if not (same and torch.equal(found.log_probs_NK[-count:], wanted.log_probs_NK[-count:, :width])):
        raise ValueError("the shard does not hold what was written")


def interleaved(sides: Sequence[Callable[[], object]], runs: int) -> list[float]:
    """Median CPU seconds of each side, after a first run of each that is not measured."""
    seconds: list[list[float]] = [[] for _ in sides]
    for run in range(runs + 1):
        for side, found in zip(sides, seconds, strict=True):
            start = time.process_time()
            side()
            if run:
                found.append(time.process_time() - start)
    return [statistics.median(found) for found in seconds]
