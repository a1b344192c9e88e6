"""The folder of a sweep: which runs are finished, with which recipe, and the cost of all attempts.

OUTPUT/runs/NAME/       the student, as `distill run` saves it
OUTPUT/logs/NAME.log    the output of all attempts; NAME.json: their total cost
OUTPUT/baselines/       scores of the baselines that had none of their own
OUTPUT/results.csv, results.parquet, pareto.png
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.errors import UsageError
from shared.parsing import parse_json
from shared.storage.files import check_folder, write_text_atomically
from student_train.distill import METRICS, is_finished
from student_train.recipe.kept import RECIPE, check_same_recipe, holds_a_run
from student_train.sweep.children import Ended, is_log
from student_train.sweep.plan import RUNS, Run

LOGS = "logs"
BASELINES = "baselines"


@dataclass(frozen=True)
class Cost:
    """The total cost of all attempts at a run, except one that was killed together with the sweep."""

    attempts: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0

    def plus(self, ended: Ended) -> "Cost":
        """Return the cost including one more attempt."""
        return Cost(
            self.attempts + 1,
            self.seconds + ended.seconds,
            self.cpu_seconds + ended.cpu_seconds,
            max(self.peak_bytes, ended.peak_bytes),
        )


def check_output(output: Path) -> None:
    """Check that a sweep may write to its folder: an empty or missing one, or that of a sweep.

    Raises:
        UsageError: if it holds other files, or cannot be written. Nothing is written.
    """
    check_folder(output, "output =")
    names = sorted(path.name for path in output.iterdir()) if output.exists() else []
    if names and not _holds_a_sweep(output):
        raise UsageError(
            f"output = {str(output)!r}: holds other files already ({', '.join(names[:3])}); choose an empty folder."
        )


def _holds_a_sweep(output: Path) -> bool:
    """Whether a folder holds what only a sweep writes: a log, a run, or the empty folders of one that was killed."""
    logs = output / LOGS
    return (
        any(is_log(path) for path in logs.glob("*.log"))
        or any(holds_a_run(path) for path in (output / RUNS).glob("*"))
        or all(path.is_dir() or (path.parent == logs and not path.lstat().st_size) for path in output.rglob("*"))
    )


def log_of(output: Path, name: str) -> Path:
    """Return the path of a run's log."""
    return output / LOGS / f"{name}.log"


def cost_of(output: Path, name: str) -> Cost:
    """Return the cost of a run so far."""
    path = log_of(output, name).with_suffix(".json")
    try:
        return Cost(**parse_json(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return Cost()  # none yet, or damaged; it is for information only


def add_cost(output: Path, name: str, ended: Ended) -> None:
    """Add an attempt to the cost of a run."""
    cost = cost_of(output, name).plus(ended)
    write_text_atomically(log_of(output, name).with_suffix(".json"), json.dumps(asdict(cost), indent=2) + "\n")


def is_done(run: Run) -> bool:
    """Whether the student of a run is finished."""
    return is_finished(run.recipe.output)


def metrics_of(folder: Path) -> dict[str, Any] | None:
    """Return the scores in a model's folder, if there are any that can be read."""
    try:
        content = parse_json((folder / METRICS).read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def check_run(run: Run) -> None:
    """Raise RecipeError if a run's folder holds a student of another recipe, finished or not."""
    if (run.recipe.output / RECIPE).exists():
        advice = "delete the folder, or choose another output for the sweep"
        check_same_recipe(run.recipe, "the student there", advice, but_for=frozenset({"output"}))
