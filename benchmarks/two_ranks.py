"""Two processes that train one student together (DDP with gloo, a core and a thread each) against one process.

    python benchmarks/two_ranks.py

Student: a transformer of 2 layers, 128 wide, with embeddings of 30,000 words (4.2 million weights); batches of 128 rows
of about 100 tokens, KL over four classes. Every run is a `distill run`, alone or started as by torchrun. Its log has a
line every ten steps; time is measured from the first line to the last, without start-up. The losses of each line must
agree to one part in 10,000. Medians of interleaved runs; CPU seconds are those of the busier rank (a waiting rank uses
none). With QUICK=1: fewer steps. Writes benchmarks/out/two_ranks.json.

The figure of wall time is meaningless on a machine with fewer than two idle cores.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from memory import dump_command
from report import Figure, write_figures
from settings import OUT, sized
from tiny_teacher import make_teacher

WORK = OUT / "two_ranks"
RANKS = 2
WORDS, ROWS, BATCH = sized((30_000, 1024, 128), quick=(30_000, 1024, 128), tiny=(500, 64, 8))
LINE_STEPS = 10
LINES = sized(5, quick=2, tiny=2)
RUNS = sized(5, quick=1, tiny=1)
TARGET = 0.9 * RANKS
TOLERANCE = 1e-4


def main() -> None:
    """Make a dump, train with one and with two in turn, compare."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    make_teacher(WORK / "teacher", words=WORDS, layers=1, longest=256)
    make_corpus(WORK / "rows.jsonl")
    command = dump_command(WORK / "teacher", WORK / "rows.jsonl", WORK / "dump")
    subprocess.run([*command, "--max-length", "256"], check=True, capture_output=True)
    speeds: dict[int, list[tuple[float, float]]] = {1: [], RANKS: []}
    losses: dict[int, list[float]] = {}
    for _ in range(RUNS):
        for count, found in speeds.items():
            logs = trained(count)
            losses[count] = logs[0]["losses"]
            steps = LINE_STEPS * (LINES - 1)
            found.append((steps / max(log["cpu"] for log in logs), steps / logs[0]["wall"]))
            print(
                f"{count} at work: {1 / found[-1][1]:.3f} s a step, CPU seconds a step of each "
                f"{[round(log['cpu'] / steps, 3) for log in logs]}, losses {[f'{loss:.6f}' for loss in losses[count]]}",
                flush=True,
            )
    apart = max(abs(one - two) / one for one, two in zip(losses[1], losses[RANKS], strict=True))
    print(f"losses differ by a part of {apart:.1e} at most")
    if apart > TOLERANCE:
        sys.exit(f"error: {RANKS} ranks learn otherwise than one: losses {losses[RANKS]}, not {losses[1]}")
    medians = {
        count: [statistics.median(clock) for clock in zip(*found, strict=True)] for count, found in speeds.items()
    }
    write_figures(
        "two_ranks",
        [
            Figure(
                figure=f"{RANKS} ranks against one, 2 x 128, {WORDS:,} words, by {clock} time",
                value=medians[RANKS][index],
                baseline=medians[1][index],
                target=TARGET,
                higher_is_better=True,
                unit="steps/s",
                runs=RUNS,
            )
            for index, clock in enumerate(("CPU", "wall"))
        ],
    )
    shutil.rmtree(WORK)


def trained(count: int) -> list[dict[str, Any]]:
    """The results that each of the ranks has written."""
    shutil.rmtree(WORK / "student", ignore_errors=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, *launcher, __file__, "rank"],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"error: a run of {count} failed:\n{done.stderr}")
    return [json.loads((WORK / f"rank-{rank}.json").read_text()) for rank in range(count)]


def rank() -> None:
    """Run `distill run` as one rank, and write the losses of its log and the time from the first line to the last."""
    import torch

    from shared.memory import keep_freed_memory
    from student_train import distill
    from student_train.recipe.recipe import Recipe
    from student_train.training.trainer import DistillationTrainer

    torch.set_num_threads(1)
    keep_freed_memory()  # as `distill` does
    lines: list[tuple[float, float, float]] = []
    log_line = DistillationTrainer.log

    def log(trainer: DistillationTrainer, logs: dict[str, float], *rest: Any) -> None:
        log_line(trainer, logs, *rest)
        if "loss/kl" in logs:
            lines.append((logs["loss/kl"], time.process_time(), time.monotonic()))

    DistillationTrainer.log = log  # type: ignore[method-assign]
    distill.run(Recipe.model_validate(recipe()), resume=False)
    (loss, first_cpu, first_wall), (*_, last_cpu, last_wall) = lines[0], lines[-1]
    found = {
        "losses": [loss, *(line[0] for line in lines[1:])],
        "cpu": last_cpu - first_cpu,
        "wall": last_wall - first_wall,
    }
    (WORK / f"rank-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))


def recipe() -> dict[str, Any]:
    """The recipe of every run."""
    return {
        "output": WORK / "student",
        "dump": WORK / "dump",
        "student": {"kind": "transformer", "layers": 2, "hidden_size": 128, "heads": 4, "dropout": 0.0},
        "loss": [{"kind": "kl"}],
        "training": {
            "max_steps": LINES * LINE_STEPS,
            "batch_size": BATCH,
            "learning_rate": 1e-3,
            "log_steps": LINE_STEPS,
            "save_steps": 10 * LINES * LINE_STEPS,
            "device": "cpu",
        },
    }


def make_corpus(path: Path) -> None:
    """Write rows of 50 to 150 words, frequent words more often."""
    draw = random.Random(0)
    words, weights = range(WORDS), [1 / (place + 10) for place in range(WORDS)]
    with path.open("w") as file:
        for _ in range(ROWS):
            text = " ".join(f"w{word}" for word in draw.choices(words, weights, k=draw.randint(50, 150)))
            file.write(json.dumps({"text": text, "label": draw.randrange(4)}) + "\n")


if __name__ == "__main__":
    rank() if sys.argv[1:] == ["rank"] else main()
