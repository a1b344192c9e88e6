"""Peak memory of `distill run` on 100,000 rows against 10,000: it must not grow with the corpus.

Runs both sizes in turn, each in its own process, and prints the ratio of medians. With QUICK=1: 20,000 against 2,000
rows. Writes benchmarks/out/memory.json. (dump_memory.py measures the memory of `dump`.)
"""

import json
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from report import Figure, write_figures
from settings import OUT, sized
from tiny_teacher import make_teacher

SMALL, LARGE = sized((10_000, 100_000), quick=(2_000, 20_000), tiny=(20, 40))
RUNS = sized(3, quick=1, tiny=1)
WORK = OUT / "memory"
WORDS = 2_000


def main() -> None:
    """Make a tiny teacher and two corpora, measure, print, write."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    make_teacher(WORK / "teacher", words=WORDS, layers=2, longest=64)
    for rows in (SMALL, LARGE):
        make_corpus(WORK / f"{rows}.jsonl", rows)
        (WORK / f"{rows}.toml").write_text(RECIPE.format(dump=WORK / f"dump-{rows}", output=WORK / f"student-{rows}"))
        dump = dump_command(WORK / "teacher", WORK / f"{rows}.jsonl", WORK / f"dump-{rows}")
        subprocess.run(dump, check=True, capture_output=True)
    peaks: dict[int, list[float]] = {SMALL: [], LARGE: []}
    for run in range(RUNS):
        for rows, found in peaks.items():
            shutil.rmtree(WORK / f"student-{rows}", ignore_errors=True)
            distill = [str(Path(sys.executable).parent / "distill"), "run", str(WORK / f"{rows}.toml")]
            found.append(peak_megabytes(distill))
            print(f"run {run + 1}  distill {rows:>8,} rows  {found[-1]:>8,.0f} MB", flush=True)
    large, small = (statistics.median(peaks[rows]) for rows in (LARGE, SMALL))
    name = f"peak memory of distill, {LARGE:,} rows against {SMALL:,}"
    figures = [Figure(name, large, small, 1.1, higher_is_better=False, unit="MB", runs=RUNS)]
    write_figures("memory", figures)


RECIPE = """
output = "{output}"
dump = "{dump}"
student = {{ kind = "transformer", layers = 1, hidden_size = 32, heads = 2 }}
loss = [{{ kind = "kl" }}, {{ kind = "hidden", teacher_layer = 2, student_layer = -1 }}]
training = {{ epochs = 1, batch_size = 256, learning_rate = 1e-3, log_steps = 1000 }}
"""


def dump_command(teacher: Path, corpus: Path, out: Path) -> list[str]:
    """A dump by the classifier of `make_teacher`."""
    task = ["--task", "sequence-classification", "--hidden", "last", "--max-length", "64"]
    files = ["--teacher", str(teacher), "--data", str(corpus), "--out", str(out)]
    return [str(Path(sys.executable).parent / "dump"), *task, *files]


def peak_megabytes(command: list[str]) -> float:
    """The largest resident size of one process; a separate process waits for it, so that no other is counted."""
    waiter = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, "
        "stderr=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", waiter, *command], check=True, capture_output=True, text=True)
    bytes_a_unit = 1 if sys.platform == "darwin" else 1024
    return int(done.stdout) * bytes_a_unit / 1e6


def make_corpus(path: Path, rows: int) -> None:
    """Rows of 4 to 20 words with a label."""
    draw = random.Random(0)
    with path.open("w") as file:
        for _ in range(rows):
            text = " ".join(f"w{draw.randrange(WORDS)}" for _ in range(draw.randint(4, 20)))
            file.write(json.dumps({"text": text, "label": draw.randrange(4)}) + "\n")


if __name__ == "__main__":
    main()
