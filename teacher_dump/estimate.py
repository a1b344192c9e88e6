"""`dump --dry-run`: the size and duration of the whole dump, estimated from a random sample. Writes nothing."""

import shutil
import time
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pyarrow.parquet as pq
import torch

from shared.ahead import ahead
from shared.dump.manifest import Manifest
from shared.dump.rowgroup import to_flat
from shared.dump.shards import column_sizes, read_row_group, write_groups
from shared.progress import Progress
from shared.storage import Folder
from teacher_dump.batching.memory import Budget
from teacher_dump.batching.mixing import mixed
from teacher_dump.batching.rows import ShardRows, annotate_rows, batches_of
from teacher_dump.engines.base import Engine, Wanted
from teacher_dump.extract import distributions, extract
from teacher_dump.plan import Plan


@dataclass(frozen=True)
class Estimate:
    """Size and duration of the dump, extrapolated from `sampled_rows`.

    Attributes:
        rows, tokens, bytes: of the whole dump.
        seconds: duration of the dump on this device, with one process.
        teacher_seconds: duration of running the teacher alone over the corpus: the cost of every epoch of a student
            that is trained without a dump.
        reading_seconds: duration of reading and decoding the dump once: the cost of every epoch with a dump.
        signal_bytes: bytes per token of each signal, and of all other columns (`text`).
        free_bytes: free space on the disk of the dump; None for a remote location.
        mixed_rows: the number of mixtures of rows, which the teacher reads besides (`seconds` includes them).
        truncated_share: the share of rows that have the most tokens allowed, and so may have been truncated.
    """

    rows: int
    tokens: int
    bytes: int
    seconds: float
    teacher_seconds: float
    reading_seconds: float
    tokens_per_second: float
    signal_bytes: dict[str, float]
    free_bytes: int | None
    mixed_rows: int
    truncated_share: float
    sampled_rows: int

    @property
    def epochs_to_break_even(self) -> float:
        """The number of epochs after which the dump has cost less time than a teacher that runs in every epoch.

        Infinite if reading takes longer than running the teacher.
        """
        saved = self.teacher_seconds - self.reading_seconds
        return self.seconds / saved if saved > 0 else float("inf")


def estimate(plan: Plan) -> Estimate:
    """Annotate the survey's sample in memory, and extrapolate to the corpus."""
    engine, manifest = plan.engine, plan.manifest
    numbers, rows = plan.sampled_rows
    shard = mixed(manifest, ShardRows.in_order(rows, numbers))
    budget = Budget(plan.request.batch_tokens, engine)
    sink = BytesIO()
    with Progress("dry run", "tokens", 2 * shard.tokens) as progress:
        # The first batch takes longer (warm-up), so a few rows are run before the time is measured.
        few = ShardRows.in_order(rows[:4], numbers[:4])
        for batch in batches_of(engine, manifest.layout, few, budget):
            extract(engine, manifest, batch)
        begun = time.monotonic()
        with ahead(batches_of(engine, manifest.layout, shard, budget), 4) as batches:
            write_groups(sink, manifest, annotate_rows(engine, manifest, shard, batches, progress))
        seconds = time.monotonic() - begun
        teacher_seconds = _bare_seconds(engine, manifest, shard, budget, progress)
    written = pq.ParquetFile(sink)
    columns = column_sizes([written.metadata])
    content, size = sum(columns.values()), sink.getbuffer().nbytes
    scale = plan.survey.rows / len(rows)
    return Estimate(
        rows=plan.survey.rows,
        tokens=round(shard.tokens * scale),
        # The size of a shard's footer does not depend on its number of rows.
        bytes=round(content * scale + (size - content) * manifest.shards) + _bytes_kept_once(manifest),
        seconds=seconds * scale,
        teacher_seconds=teacher_seconds * scale,
        reading_seconds=_reading_seconds(manifest, written) * scale,
        tokens_per_second=shard.tokens / seconds,
        signal_bytes=_by_signal(manifest, columns, max(1, shard.tokens)),
        free_bytes=_free_bytes(plan.request.folder),
        mixed_rows=plan.survey.rows * (manifest.mixtures.draws if manifest.mixtures else 0),
        truncated_share=sum(length >= plan.how.max_length for length in shard.lengths) / len(rows),
        sampled_rows=len(rows),
    )


def _free_bytes(out: Folder) -> int | None:
    if out.local is None:
        return None
    existing = next(path for path in (out.local, *out.local.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _bytes_kept_once(manifest: Manifest) -> int:
    """The bytes of `weights/`, which do not depend on the size of the corpus."""
    constants = (tensor for signal in manifest.signals for tensor in signal.codec.constants().values())
    return sum(tensor.nbytes for tensor in constants) + sum(file.bytes for file in manifest.tensor_files.values())


@torch.inference_mode()
def _bare_seconds(engine: Engine, manifest: Manifest, shard: ShardRows, budget: Budget, progress: Progress) -> float:
    """The seconds of the teacher's forward pass and its head at the recorded positions, without encoding."""
    wanted = Wanted.of(None if manifest.distribution is None else "logits", manifest.vector_signals)
    begun = time.monotonic()
    for batch in batches_of(engine, manifest.layout, shard, budget):
        outputs = engine.run(batch.to(engine.device), wanted)
        for _ in distributions(manifest, batch, outputs) if wanted.distribution else ():
            pass
        engine.memory.wait()
        progress.advance(batch.tokens)
    return time.monotonic() - begun


def _reading_seconds(manifest: Manifest, written: pq.ParquetFile) -> float:
    """The seconds of reading every row group and decoding every signal on the host."""
    names = [column.name for signal in manifest.signals for column in signal.columns]
    begun = time.monotonic()
    for group in range(written.num_row_groups):
        flat = to_flat(read_row_group(manifest, written, group, names).columns)
        tensors = {name: torch.from_numpy(np.array(values)) for name, values in flat.items()}
        for signal in manifest.signals:
            signal.codec.decode(tensors)
    return time.monotonic() - begun


def _by_signal(manifest: Manifest, columns: dict[str, int], tokens: int) -> dict[str, float]:
    of_signals = {signal.name: sum(columns[column.name] for column in signal.columns) for signal in manifest.signals}
    text = sum(columns.values()) - sum(of_signals.values())
    return {name: size / tokens for name, size in {"text": text, **of_signals}.items()}
