"""Baselines: models that a sweep is compared with, by their own scores if these are comparable, or by new ones."""

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from shared.errors import RecipeError
from shared.options import flag_of
from shared.parsing import parse_json
from student_train.distill import is_finished
from student_train.recipe.columns import EvalSection
from student_train.recipe.kept import recipe_of
from student_train.sweep.folder import BASELINES, metrics_of
from student_train.sweep.names import toml
from student_train.sweep.plan import Sweep
from student_train.sweep.results import Metrics, Scored, main_metric
from student_train.sweep.work import Job

# What must be equal for scores and latencies to be comparable.
CONDITIONS = ("task", "rows", "device", "threads")


def check_baselines(sweep: Sweep) -> None:
    """Check the folders of all baselines. Raises RecipeError for one that holds no model."""
    for name, folder in sweep.spec.baselines.items():
        if not is_finished(folder):
            raise RecipeError(f"baselines.{name} = '{folder}': there is no model in this folder; check the path.")


def baseline_jobs(sweep: Sweep, reference: Metrics) -> list[Job]:
    """Return jobs that score the remaining baselines under the conditions of `reference`, the scores of a run."""
    section = sweep.runs[0].recipe.eval
    assert section is not None
    jobs = []
    for name, folder in sweep.spec.baselines.items():
        if _found(sweep, name, reference) is None:
            result = _file(sweep, name)
            result.parent.mkdir(exist_ok=True)
            options = (*_options(section), "--device", str(reference["device"]), "--json", str(result))
            jobs.append(Job(f"baseline-{name}", ("eval", str(folder), *options), partial(_score, result)))
    return jobs


def scored_baselines(sweep: Sweep, reference: Metrics) -> list[Scored]:
    """Return the baselines that have comparable scores."""
    found = {name: _found(sweep, name, reference) for name in sweep.spec.baselines}
    return [Scored(name, name, "baseline", metrics) for name, metrics in found.items() if metrics is not None]


def _found(sweep: Sweep, name: str, reference: Metrics) -> Metrics | None:
    """Return scores on the same data under the same conditions: the model's own, or those measured by the sweep."""
    folder, section = sweep.spec.baselines[name], sweep.runs[0].recipe.eval
    own, recipe = metrics_of(folder), recipe_of(folder)
    if own is not None and recipe is not None and recipe.eval == section and _is_comparable(own, reference):
        return own
    file = _file(sweep, name)
    if not file.exists():
        return None
    ours: Metrics = parse_json(file.read_bytes())
    return ours if ours["model"] == str(folder) and _is_comparable(ours, reference) else None


def _is_comparable(metrics: Metrics, reference: Metrics) -> bool:
    return all(metrics.get(key) == reference.get(key) for key in CONDITIONS)


def _options(section: EvalSection) -> list[str]:
    """Return the keys of [eval] that are not at their defaults, as the options of `distill eval` of the same names."""
    options = [argument for file in section.data for argument in ("--data", file)]
    given = TypeAdapter(EvalSection).dump_python(section, mode="json", exclude={"data"}, exclude_defaults=True)
    for key, value in given.items():
        options += [flag_of(key), value if isinstance(value, str) else toml(value)]
    return options


def _score(file: Path) -> str:
    metrics: dict[str, Any] = parse_json(file.read_bytes())
    name, value = main_metric(metrics)
    return f"{name} {value:.4g}"


def _file(sweep: Sweep, name: str) -> Path:
    return sweep.spec.output / BASELINES / f"{name}.json"
