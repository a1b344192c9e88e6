"""Tokens per second of two processes that fill one dump together, against one process; each has a core and a thread.

    python benchmarks/dump_workers.py

Every process loads and checks everything (`prepare`), reports that it is ready, and waits until all are ready. Time is
measured from that moment to the last shard's receipt: start-up is not included, but idling at the end is. Shards are
claimed through the folder, and ranks are set in the environment, as by torchrun. Medians of interleaved runs. With
QUICK=1: less text. Writes benchmarks/out/dump_workers.json.

The figure is meaningless on a machine with fewer than two idle cores.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from dump_cases import MASKED, WORK, fresh
from report import Figure, write_figures
from settings import sized

from shared import Dump

PROCESSES = 2
# At 700 microseconds per token and core, two processes work for about ten seconds.
ROWS, SHARDS = sized((640, 32), quick=(24, 6), tiny=(4, 2))
RUNS = sized(5, quick=1, tiny=1)
TARGET = 0.85 * PROCESSES
OPTIONS = {"limit": ROWS, "shard_rows": -(-ROWS // SHARDS)}
READY, GO = WORK / "ready", WORK / "go"


def main() -> None:
    """Measure one process and two in turn, print, write."""
    speeds: dict[int, list[float]] = {1: [], PROCESSES: []}
    for _ in range(RUNS):
        for count, found in speeds.items():
            found.append(together(count))
            print(f"{count} at work: {found[-1]:,.0f} tokens/s", flush=True)
    two, one = (statistics.median(speeds[count]) for count in (PROCESSES, 1))
    write_figures("dump_workers", [Figure("two processes against one", two, one, TARGET, True, "tokens/s", RUNS)])


def together(count: int) -> float:
    """Tokens per second of a number of processes that make one dump."""
    out = fresh("dumped")
    fresh(READY.name).mkdir(parents=True)
    GO.unlink(missing_ok=True)
    processes = [
        subprocess.Popen([sys.executable, __file__, "worker"], env=environment(rank, count)) for rank in range(count)
    ]
    try:
        while len(list(READY.iterdir())) < count:
            if any(process.poll() is not None for process in processes):
                sys.exit("error: a process ended before it was ready; see above")
            time.sleep(0.05)
        begun = time.time()
        GO.touch()
        if any(process.wait() for process in processes):
            sys.exit("error: a process failed; see above")
    finally:
        for process in processes:
            process.kill()
    tokens = sum(receipt.tokens for receipt in Dump(out).receipts.values())
    ended = max((out / "shards" / f"{index:05d}.json").stat().st_mtime for index in range(SHARDS))
    made = [json.loads((READY / str(rank)).read_text() or "0") for rank in range(count)]
    print(f"  shards made by each: {made}, {tokens:,} tokens in {ended - begun:.1f} s")
    return tokens / (ended - begun)


def environment(rank: int, count: int) -> dict[str, str]:
    """The environment that torchrun sets, with one thread; for a single process, that of a plain command."""
    told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)} if count > 1 else {}
    return {**os.environ, "OMP_NUM_THREADS": "1", **told}


def work() -> None:
    """Run one of the processes."""
    import torch

    from shared.memory import keep_freed_memory
    from teacher_dump.annotate import annotate, prepare

    torch.set_num_threads(1)
    keep_freed_memory()
    plan = prepare(MASKED.request(WORK / "dumped", **OPTIONS))
    ready = READY / os.environ.get("RANK", "0")
    ready.touch()
    while not GO.exists():
        time.sleep(0.005)
    ready.write_text(json.dumps(annotate(plan).made))


if __name__ == "__main__":
    work() if sys.argv[1:] == ["worker"] else main()
