"""The cost of a token in `dump`, stage by stage: CPU microseconds, with the stages one after the other in one thread.

    python benchmarks/dump_stages.py

Measured for each of the teachers of dump_cases.py; the stages are those of teacher_dump/annotate.py, where they run in
three threads. `torch.topk and logsumexp` of the same logits is given for comparison with `choose and encode`. Medians
of interleaved passes over one shard. With QUICK=1: fewer texts. Writes nothing.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from dump_cases import CASES, TOP_K, into, plan_of
from settings import sized

from shared.dump.rowgroup import RowGroup
from shared.dump.shards import shard_path, write_shard
from shared.memory import keep_freed_memory
from shared.storage import sha256_of
from teacher_dump.batching.memory import Budget
from teacher_dump.batching.rows import ShardRows, batches_of, row_groups
from teacher_dump.engines.base import Wanted
from teacher_dump.extract import Columns, Encoded, distributions
from teacher_dump.folder import begin_folder, make_folder
from teacher_dump.plan import Plan

RUNS = sized(3, quick=1, tiny=1)
ASIDE = ("torch.topk and logsumexp", "SHA-256 alone", "survey, before the first shard")


class Clock:
    """CPU seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """While open, CPU time is added to the stage."""
        start = time.process_time()
        yield
        self.seconds[stage] += time.process_time() - start


def main() -> None:
    """Print the table of every teacher."""
    torch.set_num_threads(1)
    keep_freed_memory()
    for case in CASES:
        plan = plan_of(case)
        passes = [one_pass(plan) for _ in range(RUNS)]
        tokens = passes[0][1]
        print(f"\n{case.name}: {tokens:,} tokens of one shard, CPU microseconds a token")
        stages = {name: statistics.median(clock.seconds[name] for clock, _ in passes) for name in passes[0][0].seconds}
        total = sum(seconds for name, seconds in stages.items() if name not in ASIDE)
        for name, seconds in stages.items():
            if name not in ASIDE:
                print(f"  {name:<40}{seconds / tokens * 1e6:>9.2f}{seconds / total:>8.1%}")
        print(f"  {'all':<40}{total / tokens * 1e6:>9.2f}")
        for name in ASIDE:
            if name in stages:
                print(f"  ({name}: {stages[name] / tokens * 1e6:.2f})")


@torch.inference_mode()
def one_pass(plan: Plan) -> tuple[Clock, int]:
    """(seconds by stage, tokens) of the first shard."""
    plan = into(plan, "stages")
    make_folder(plan.request.folder)
    begin_folder(plan.request.folder, plan.manifest, plan.how.tokenizer)
    engine, manifest, codec, clock = plan.engine, plan.manifest, plan.manifest.distribution, Clock()
    with clock("read the corpus"):
        index, first_row, parse = next(plan.corpus.blocks(manifest.options.shard_rows))
        examples = parse()
    with clock("tokenize"):
        rows = plan.task.tokenize(plan.how, examples, first_row)
    with clock("batches"):
        shard = ShardRows.in_order(rows, range(first_row, first_row + len(rows)), index)
        batches = list(batches_of(engine, manifest.layout, shard, Budget(plan.request.batch_tokens, engine)))
    pieces: list[tuple[int, Columns]] = []
    wanted = Wanted.of(codec.takes if codec else None, manifest.vector_signals)
    for batch in batches:
        with clock("forward"):
            outputs = engine.run(batch, wanted)
        parts = []
        slices = distributions(manifest, batch, outputs)
        while True:
            with clock("head"):
                found = next(slices, None)
            if found is None:
                break
            _, given, keys_N = found
            if codec.columns[0].name.endswith("entries"):
                with clock(ASIDE[0]):
                    given.topk(TOP_K), given.logsumexp(-1)
            with clock("choose and encode"):
                parts.append(codec.encode(given, keys_N))
            del found, given
        with clock("choose and encode"):
            tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        with clock("encode the hidden states"):
            for signal in manifest.vector_signals:
                tensors |= manifest.vectors[signal.name].encode(outputs.vectors[signal.key])
        with clock("to the host, as columns"):
            pieces.append((len(batch.rows), Encoded({k: v.cpu() for k, v in tensors.items()}, None).columns(manifest)))
    with clock("row groups"):
        groups: list[RowGroup] = list(row_groups(manifest, shard, iter(pieces)))
    with clock("Parquet, flush, SHA-256"):
        write_shard(plan.request.folder, index, manifest, iter(groups))
    with clock(ASIDE[1]):
        sha256_of(shard_path(plan.request.folder, index))
    with clock(ASIDE[2]):
        plan.corpus.survey()
    # The survey also reads every row.
    clock.seconds[ASIDE[2]] *= len(rows) / manifest.corpus.rows
    return clock, shard.tokens


if __name__ == "__main__":
    main()
