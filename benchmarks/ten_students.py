"""One dump and ten students, against ten students that run the teacher in every step: wall and CPU seconds in total.

    python benchmarks/ten_students.py --teacher FOLDER --data FILE [--data FILE ...]

FOLDER is a teacher for sequence-classification. Both sides train the same BiLSTMs (ten seeds) by `distill run` on the
same batches with the same loss (logits with MSE), each in its own process, in turns. One side reads a dump, whose
making is included; the other runs the teacher on every batch. One thread. With QUICK=1: two students and one epoch.
Writes benchmarks/out/ten_students.json.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from report import Figure, write_figures
from settings import sized
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from shared.dump.codecs import DenseTargets
from student_train import distill
from student_train.data.batch import Batch
from student_train.data.sources import Source
from student_train.forward.outputs import BatchTargets
from student_train.recipe.recipe import read_recipe
from student_train.training import trainer

STUDENTS, EPOCHS = sized((10, 3), quick=(2, 1), tiny=(1, 1))
WORK = Path("out/ten_students")
RECIPE = f"""
output = "{WORK}/student"
dump = "{WORK}/dump"

[student]
kind = "bilstm"
embedding_size = 50
hidden_size = 128
trim_vocabulary = 2

[[loss]]
kind = "logits-mse"

[training]
epochs = {EPOCHS}
batch_size = 32
learning_rate = 2e-3
"""


@dataclass
class Spent:
    """Seconds of child processes."""

    wall: float = 0.0
    cpu: float = 0.0

    def on(self, *command: str) -> None:
        """Add the seconds of a command."""
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        with (WORK / "log.txt").open("ab") as log:
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.wall += time.perf_counter() - start
        self.cpu += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def targets_by(teacher: PreTrainedModel) -> Callable[[Batch, Source], BatchTargets]:
    """The replacement of `targets_of`, which runs the teacher instead of decoding the dump's logits."""

    @torch.no_grad()
    def targets_of(batch: Batch, source: Source) -> BatchTargets:
        return BatchTargets(DenseTargets(teacher(**batch.inputs).logits), {}, batch.labels)

    return targets_of


def train_beside(teacher: str, seed: int) -> None:
    """Run `distill run` with the teacher in every step."""
    torch.set_num_threads(1)
    model = AutoModelForSequenceClassification.from_pretrained(teacher, dtype=torch.float32).eval()
    trainer.targets_of = targets_by(model)
    recipe = WORK / "recipe.toml"
    distill.run(read_recipe(recipe, [f"training.seed={seed}", f"output={WORK}/beside-{seed}"]), resume=False)


def main() -> None:
    """Run both sides, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, help="a model folder for sequence-classification")
    parser.add_argument("--data", action="append", required=True, help="a corpus; repeat it for more")
    parser.add_argument("--beside", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.beside is not None:
        train_beside(args.teacher, args.beside)
        return
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    recipe = WORK / "recipe.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    ours, dumping, beside = Spent(), Spent(), Spent()
    data = [argument for path in args.data for argument in ("--data", path)]
    dump = ("dump", "--task", "sequence-classification", "--teacher", args.teacher, *data, "--out", f"{WORK}/dump")
    dumping.on(*dump)
    for seed in range(STUDENTS):
        ours.on("distill", "run", str(recipe), "--set", f"training.seed={seed}", "--set", f"output={WORK}/ours-{seed}")
        beside.on(sys.executable, __file__, "--teacher", args.teacher, "--data", "-", "--beside", str(seed))
    print(
        f"{STUDENTS} students, {EPOCHS} epochs each: the dump took {dumping.wall:.0f} s ({dumping.cpu:.0f} CPU s), a "
        f"student from it {ours.wall / STUDENTS:.1f} s ({ours.cpu / STUDENTS:.1f}), one beside the teacher "
        f"{beside.wall / STUDENTS:.1f} s ({beside.cpu / STUDENTS:.1f}); starting Python and torch is counted each time"
    )
    figures = [
        (clock, getattr(beside, clock), getattr(dumping, clock) + getattr(ours, clock)) for clock in ("wall", "cpu")
    ]
    write_figures(
        "ten_students",
        [
            Figure(f"{STUDENTS} students: teacher alongside / one dump, {clock} seconds", theirs, mine, 1, True, "s", 1)
            for clock, theirs, mine in figures
        ],
    )


if __name__ == "__main__":
    main()
