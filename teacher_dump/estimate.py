"""`dump --dry-run`: what the whole dump will take, measured on a random sample of the corpus. Writes nothing."""

import shutil
import time
from dataclasses import dataclass

from shared.dump.shards import weigh
from shared.progress import Progress
from teacher_dump.plan import Plan
from teacher_dump.rows import annotate_rows, batch_tokens


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
    """Annotate the survey's sample into memory and scale up."""
    teacher, manifest, numbers = plan.teacher, plan.manifest, plan.survey.sample_numbers
    rows = plan.task.tokenize(plan.how, plan.survey.sample, 0)
    tokens = sum(len(row.input_ids) for row in rows)
    with Progress("dry run", "tokens", tokens) as progress:
        budget = batch_tokens(plan.request, teacher)
        # The first batch also pays for warming up; a few rows ahead of the clock keep that out of the figure.
        list(annotate_rows(teacher, manifest, rows[:4], numbers, budget, progress))
        start = time.monotonic()
        _, columns, size = weigh(manifest, annotate_rows(teacher, manifest, rows, numbers, budget, progress))
        seconds = time.monotonic() - start
    scale = plan.survey.rows / len(rows)
    content = sum(columns.values())
    existing = next(path for path in (plan.request.out, *plan.request.out.absolute().parents) if path.exists())
    return Estimate(
        rows=plan.survey.rows,
        tokens=round(tokens * scale),
        # A shard's footer costs the same however many rows it has.
        bytes=round(content * scale + (size - content) * manifest.shards),
        seconds=seconds * scale,
        tokens_per_second=tokens / seconds,
        column_bytes={name: size / max(tokens, 1) for name, size in columns.items()},
        free_bytes=shutil.disk_usage(existing).free,
        truncated_share=sum(len(row.input_ids) >= plan.how.max_length for row in rows) / len(rows),
        sampled_rows=len(rows),
    )
