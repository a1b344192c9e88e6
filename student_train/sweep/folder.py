"""A sweep's folder: which runs are finished, by which recipe, and what every attempt at them has cost.

OUTPUT/runs/NAME/       the student, as `distill run` leaves it
OUTPUT/logs/NAME.log    what its attempts said; NAME.json: what they cost, together
OUTPUT/baselines/       scores of the baselines that had none of their own
OUTPUT/results.csv, results.parquet, pareto.png
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.errors import RecipeError
from shared.storage.files import write_text_atomically
from student_train.distill import METRICS, is_finished
from student_train.recipe.recipe import Recipe
from student_train.sweep.children import Ended
from student_train.sweep.names import flat
from student_train.sweep.plan import Run
from student_train.training.journal import RECIPE

LOGS = "logs"
BASELINES = "baselines"


@dataclass(frozen=True)
class Cost:
    """Of all attempts at a run together, but for one that was killed along with the sweep."""

    attempts: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0

    def plus(self, ended: Ended) -> "Cost":
        """With one more attempt."""
        return Cost(
            self.attempts + 1,
            self.seconds + ended.seconds,
            self.cpu_seconds + ended.cpu_seconds,
            max(self.peak_bytes, ended.peak_bytes),
        )


def log_of(output: Path, name: str) -> Path:
    """Where a run's log is."""
    return output / LOGS / f"{name}.log"


def cost_of(output: Path, name: str) -> Cost:
    """What a run has cost so far."""
    path = log_of(output, name).with_suffix(".json")
    return Cost(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else Cost()


def add_cost(output: Path, name: str, ended: Ended) -> None:
    """Add an attempt to what a run has cost."""
    cost = cost_of(output, name).plus(ended)
    write_text_atomically(log_of(output, name).with_suffix(".json"), json.dumps(asdict(cost), indent=2) + "\n")


def is_done(run: Run) -> bool:
    """Whether its student is finished."""
    return is_finished(run.recipe.output)


def metrics_of(folder: Path) -> dict[str, Any] | None:
    """The scores beside a model, if there are any."""
    path = folder / METRICS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def recipe_of(folder: Path) -> Recipe | None:
    """The recipe beside a model; None where there is none, or none that this version knows."""
    try:
        return Recipe.model_validate_json((folder / RECIPE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None


def check_same_recipe(run: Run) -> None:
    """Raises RecipeError where a run's folder holds another recipe's student, finished or not."""
    folder = run.recipe.output
    if not (folder / RECIPE).exists():
        return
    found = recipe_of(folder)
    then = flat(found.model_dump(mode="json", exclude={"output"})) if found is not None else {}
    now = flat(run.recipe.model_dump(mode="json", exclude={"output"}))
    changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if changed:
        difference = ", ".join(f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in changed[:3])
        raise RecipeError(
            f"{folder}: the student there has another recipe ({difference}); delete the folder, or choose another "
            "output for the sweep."
        )
