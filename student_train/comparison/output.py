"""A comparison as a table for the terminal, as CSV, as JSON and as a plot."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from shared.errors import UsageError
from shared.plotting import figure_type
from shared.storage.files import write_atomically, write_text_atomically
from student_train.comparison.scores import ALONE, Compared, Comparison
from student_train.sweep.pareto import widen
from student_train.sweep.table import aligned, score_text


def lines(found: Comparison) -> list[str]:
    """The lines of the table: a row for each model, a column for each task, and the mean."""
    header = ["model", "parameters", *(f"{task} ({metric})" for task, metric in found.metrics.items()), "mean"]
    rows = [
        [
            model.name,
            f"{model.parameters:,}",
            *(_cell(model, task) for task in found.metrics),
            "" if model.mean is None else score_text(model.mean, model.deviation),
        ]
        for model in found.models
    ]
    shown = aligned([header, *rows], texts={0})
    if any(model.mean is None for model in found.models):
        shown.append("(A mean is only of models with scores on all tasks, of metrics that are all better when higher.)")
    return shown


def write_csv(found: Comparison, file: Path) -> None:
    """Write a table with a row for each model: scores, standard deviations and numbers of seeds of all tasks."""
    table = pl.DataFrame([dict(_row(found, model)) for model in found.models], infer_schema_length=None)
    write_atomically(file, table.write_csv)


def write_json(found: Comparison, file: Path) -> None:
    """Write everything, with the score of every seed."""
    models = [
        {
            "name": model.name,
            "folder": str(model.folder),
            "parameters": model.parameters,
            "mean": model.mean,
            "deviation": model.deviation,
            "scores": {
                task: {
                    "mean": one.mean,
                    "deviation": one.deviation,
                    "rows": one.rows,
                    "by_seed": {} if ALONE in one.by_seed else dict(one.by_seed),
                }
                for task, one in model.scores.items()
                if task in found.metrics
            },
        }
        for model in found.models
    ]
    write_text_atomically(file, json.dumps({"metrics": dict(found.metrics), "models": models}, indent=2) + "\n")


def plot(found: Comparison, file: Path) -> None:
    """Plot the mean over the tasks against the number of parameters.

    Raises:
        UsageError: if no model has a mean, or if matplotlib is not installed.
    """
    figure = figure_type()(figsize=(8, 5), layout="constrained")
    models = [model for model in found.models if model.mean is not None]
    if not models:
        raise UsageError(f"--plot {file}: no model has scores on all tasks, so there is no mean to plot.")
    axes: Any = figure.subplots()
    axes.set_xscale("log")
    for model in models:
        axes.errorbar(model.parameters, model.mean, yerr=model.deviation, fmt="o", color="#0b6e99", capsize=3)
        axes.annotate(model.name, (model.parameters, model.mean), (6, 5), textcoords="offset points", fontsize=8)
    widen(axes, [float(model.parameters) for model in models])
    axes.set(xlabel="parameters", ylabel=f"mean over {', '.join(found.metrics)}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eeeeee")
    write_atomically(file, lambda path: figure.savefig(path, dpi=130, format=file.suffix[1:].lower()))


def _cell(model: Compared, task: str) -> str:
    one = model.scores.get(task)
    return "" if one is None else score_text(one.mean, one.deviation)


def _row(found: Comparison, model: Compared) -> Iterator[tuple[str, Any]]:
    yield "model", model.name
    yield "folder", str(model.folder)
    yield "parameters", model.parameters
    for task, metric in found.metrics.items():
        one = model.scores.get(task)
        yield f"{task}.{metric}", None if one is None else one.mean
        yield f"{task}.deviation", None if one is None else one.deviation
        yield f"{task}.seeds", None if one is None else len(one.by_seed)
    yield "mean", model.mean
    yield "deviation", model.deviation
