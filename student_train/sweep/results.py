"""What the runs of a sweep scored: one flat row a run, for CSV and Parquet, and a summary over the seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from shared.storage.files import write_atomically
from shared.text.metrics import LOWER_IS_BETTER
from student_train.sweep.folder import cost_of, is_done, metrics_of
from student_train.sweep.names import flat, toml
from student_train.sweep.plan import Run, Sweep

Kind = Literal["dump", "labels", "baseline"]
Metrics = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """A finished run or a baseline: its metrics.json, and what making it took (a baseline: None)."""

    name: str
    group: str
    kind: Kind
    metrics: Metrics
    seconds: float | None = None
    cpu_seconds: float | None = None


@dataclass(frozen=True)
class Summary:
    """The runs that differ in their seed only. Scores, agreement and cost are means over them, latencies medians.

    Attributes:
        kind: what it learnt from: the dump, labels alone; or "baseline", a model from elsewhere.
        metric: the main metric, of which `score` is the mean and `deviation` the standard deviation (one seed: None).
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
        """The score where more is better, its negative where less is."""
        return -self.score if self.metric in LOWER_IS_BETTER else self.score


def scored(run: Run, output: Path) -> Scored | None:
    """A run's scores, if it is finished."""
    metrics = metrics_of(run.recipe.output) if is_done(run) else None
    if metrics is None:
        return None
    cost = cost_of(output, run.name)
    return Scored(run.name, run.group, "dump" if run.has_teacher else "labels", metrics, cost.seconds, cost.cpu_seconds)


def main_metric(metrics: Metrics) -> tuple[str, float]:
    """The first of the metrics, which is the task's main one."""
    return next(iter(metrics["metrics"].items()))


def summaries(found: Sequence[Scored]) -> list[Summary]:
    """One for each group, the best first."""
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
    """One row a run, the unfinished ones too, and one a baseline; every key that varies and every metric a column."""
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
    return table.with_columns(pl.col(pl.Null).cast(pl.String))  # a column of nothing has a type that few know


def write_results(table: pl.DataFrame, output: Path) -> None:
    """results.csv and results.parquet."""
    write_atomically(output / "results.csv", table.write_csv)
    write_atomically(output / "results.parquet", table.write_parquet)


def _flat_metrics(metrics: Metrics) -> dict[str, Any]:
    """The task's metrics by their names, then everything else that was measured, latencies as latency_ms.32."""
    rest = {key: value for key, value in metrics.items() if key not in ("metrics", "model", "task")}
    name, value = main_metric(metrics)
    return {"metric": name, "score": value, **metrics["metrics"], **flat(rest)}


def _value_at(content: Any, key: str) -> Any:
    """What a recipe has at a dotted key, set there or by default; None where it has no such place."""
    for part in key.split("."):
        try:
            content = content[int(part) if isinstance(content, list) else part]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return content


def _column(values: list[Any]) -> list[Any]:
    """Values of one kind: numbers, truth values or texts; anything else as TOML."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    if len(kinds) <= 1 and kinds <= {int, float, str, bool}:
        return values
    return [value if value is None or isinstance(value, str) else toml(value) for value in values]
