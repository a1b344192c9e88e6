"""Results of a sweep: a table with one row per run, for CSV and Parquet, and summaries over the seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from shared.storage.files import write_atomically
from shared.text.metrics import LOWER_IS_BETTER
from student_train.recipe.kept import flat
from student_train.sweep.folder import cost_of, is_done, metrics_of
from student_train.sweep.names import toml
from student_train.sweep.plan import Run, Sweep

Kind = Literal["dump", "labels", "baseline"]
Metrics = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """A finished run or a baseline: the content of its metrics.json, and the time of its training (baseline: None)."""

    name: str
    group: str
    kind: Kind
    metrics: Metrics
    seconds: float | None = None
    cpu_seconds: float | None = None


@dataclass(frozen=True)
class Summary:
    """A summary of the runs that differ in their seed only: means of scores, agreement and cost, medians of latencies.

    Attributes:
        kind: what the students were trained on: "dump" or "labels" (alone); or "baseline", another model.
        metric: the main metric; `score` is its mean, and `deviation` its standard deviation (None for one seed).
        latency_ms: batch size -> milliseconds.
    """

    name: str
    kind: Kind
    metric: str
    score: float
    deviation: float | None
    seeds: int
    parameters: int
    latency_ms: dict[str, float]
    agreement: float | None
    seconds: float | None
    cpu_seconds: float | None

    @property
    def merit(self) -> float:
        """The score, or its negative if lower scores are better."""
        return -self.score if self.metric in LOWER_IS_BETTER else self.score


def scored(run: Run, output: Path) -> Scored | None:
    """Return a run's scores if it is finished, else None."""
    metrics = metrics_of(run.recipe.output) if is_done(run) else None
    if metrics is None:
        return None
    cost = cost_of(output, run.name)
    return Scored(run.name, run.group, "dump" if run.has_teacher else "labels", metrics, cost.seconds, cost.cpu_seconds)


def main_metric(metrics: Metrics) -> tuple[str, float]:
    """Return (name, value) of the task's main metric, which is the first one."""
    return next(iter(metrics["metrics"].items()))


def summaries(found: Sequence[Scored]) -> list[Summary]:
    """Return a summary of each group, the best first."""
    groups: dict[tuple[str, str], list[Scored]] = {}
    for one in found:
        groups.setdefault((one.kind, one.group), []).append(one)
    return sorted(map(_summary, groups.values()), key=lambda summary: summary.merit, reverse=True)


def _summary(runs: list[Scored]) -> Summary:
    first = runs[0]
    scores = [main_metric(run.metrics)[1] for run in runs]
    return Summary(
        name=first.group,
        kind=first.kind,
        metric=main_metric(first.metrics)[0],
        score=statistics.mean(scores),
        deviation=statistics.stdev(scores) if len(scores) > 1 else None,
        seeds=len(runs),
        parameters=first.metrics["parameters"],
        latency_ms={
            size: statistics.median(run.metrics["latency_ms"][size] for run in runs)
            for size in first.metrics["latency_ms"]
        },
        agreement=_mean([run.metrics.get("agreement") for run in runs]),
        seconds=_mean([run.seconds for run in runs]),
        cpu_seconds=_mean([run.cpu_seconds for run in runs]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def frame(sweep: Sweep, baselines: Sequence[Scored], failed: dict[str, str]) -> pl.DataFrame:
    """Return a table with one row per run, finished or not, and one per baseline; columns are keys and metrics."""
    output = sweep.spec.output
    rows: list[dict[str, Any]] = []
    for run in sweep.runs:
        content = run.recipe.model_dump(mode="json", by_alias=True)
        one = scored(run, output)
        rows.append(
            {
                "run": run.name,
                "group": run.group,
                "variant": run.variant,
                "learnt_from": "dump" if run.has_teacher else "labels",
                "state": "done" if one else "failed" if run.name in failed else "unfinished",
                "error": failed.get(run.name),
                **{key: _value_at(content, key) for key in sweep.keys},
                **(_flat_metrics(one.metrics) if one else {}),
                **asdict(cost_of(output, run.name)),
                "folder": str(run.recipe.output),
            }
        )
    rows += [
        {"run": one.name, "group": one.group, "learnt_from": "baseline", "state": "done", **_flat_metrics(one.metrics)}
        for one in baselines
    ]
    columns = dict.fromkeys(name for row in rows for name in row)
    table = pl.DataFrame({name: _column([row.get(name) for row in rows]) for name in columns})
    # Many readers do not know the type Null of an empty column.
    return table.with_columns(pl.col(pl.Null).cast(pl.String))


def write_results(table: pl.DataFrame, output: Path) -> None:
    """Write results.csv and results.parquet."""
    write_atomically(output / "results.csv", table.write_csv)
    write_atomically(output / "results.parquet", table.write_parquet)


def _flat_metrics(metrics: Metrics) -> dict[str, Any]:
    """Return the task's metrics by name, then all other measurements, with flat names such as latency_ms.32."""
    rest = {key: value for key, value in metrics.items() if key not in ("metrics", "model", "task")}
    name, value = main_metric(metrics)
    return {"metric": name, "score": value, **metrics["metrics"], **flat(rest)}


def _value_at(content: Any, key: str) -> Any:
    """Return the value of a recipe at a dotted key, given or by default; None if it has no such key."""
    for part in key.split("."):
        try:
            content = content[int(part) if isinstance(content, list) else part]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return content


def _column(values: list[Any]) -> list[Any]:
    """Return values of one type for a column: numbers, booleans or strings; values of mixed types become TOML."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    if len(kinds) <= 1 and kinds <= {int, float, str, bool}:
        return values
    return [value if value is None or isinstance(value, str) else toml(value) for value in values]
