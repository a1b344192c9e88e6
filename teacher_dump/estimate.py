"""`dump --dry-run`: what the whole dump will take, measured on a random sample of the corpus. Writes nothing."""

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from shared.dump.shards import column_sizes, shard_path, write_shard
from shared.progress import Progress
from teacher_dump.annotate import annotate_rows, batch_tokens
from teacher_dump.plan import Plan


@dataclass(frozen=True)
class Estimate:
    """What the dump will take, extrapolated from `sampled_rows`; `column_bytes` are bytes a token in the file."""

    rows: int
    tokens: int
    bytes: int
    seconds: float
    tokens_per_second: float
    column_bytes: dict[str, float]
    free_bytes: int
    truncated_share: float
    sampled_rows: int


def estimate(plan: Plan) -> Estimate:
    """Annotate the survey's sample into a temporary folder and scale up."""
    teacher, manifest, numbers = plan.teacher, plan.manifest, plan.survey.sample_numbers
    rows = plan.task.tokenize(plan.how, plan.survey.sample, 0)
    tokens = sum(len(row.input_ids) for row in rows)
    with tempfile.TemporaryDirectory() as folder, Progress("dry run", "tokens", tokens) as progress:
        file = shard_path(Path(folder), 0)
        file.parent.mkdir()
        budget = batch_tokens(plan.request, teacher)
        # The first batch also pays for warming up; a few rows ahead of the clock keep that out of the figure.
        list(annotate_rows(teacher, manifest, rows[:4], numbers, budget, progress))
        start = time.monotonic()
        receipt = write_shard(
            Path(folder), 0, manifest, annotate_rows(teacher, manifest, rows, numbers, budget, progress)
        )
        seconds = time.monotonic() - start
        columns = column_sizes([pq.ParquetFile(file).metadata])
    scale = plan.survey.rows / len(rows)
    content = sum(columns.values())
    existing = next(path for path in (plan.request.out, *plan.request.out.absolute().parents) if path.exists())
    return Estimate(
        rows=plan.survey.rows,
        tokens=round(tokens * scale),
        # A shard's footer costs the same however many rows it has.
        bytes=round(content * scale + (receipt.bytes - content) * manifest.shards),
        seconds=seconds * scale,
        tokens_per_second=tokens / seconds,
        column_bytes={name: size / max(tokens, 1) for name, size in columns.items()},
        free_bytes=shutil.disk_usage(existing).free,
        truncated_share=sum(len(row.input_ids) >= plan.how.max_length for row in rows) / len(rows),
        sampled_rows=len(rows),
    )
