"""`distill compare`: models that were scored on several tasks, with means over seeds and over tasks.

A model is a folder with a folder for each task, and that has the scores of one student in metrics.json, or a folder
with a metrics.json for each seed. `distill run` writes them, and so does `distill eval --json`. Nothing is scored
again.

    students/minilm/sst2/metrics.json          students/minilm/trec/seed-0/metrics.json, seed-1/metrics.json, ...
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import UsageError
from shared.text.metrics import LOWER_IS_BETTER
from student_train.distill import METRICS
from student_train.sweep.folder import metrics_of

# The name of the only seed of a task without folders of seeds.
ALONE = ""


@dataclass(frozen=True)
class Scores:
    """The scores of one model on one task.

    Attributes:
        metric: the metric that is compared.
        by_seed: name of the seed's folder -> score.
        rows: number of rows of the data; of questions, if rows are windows of their contexts.
        parameters: of the model.
    """

    metric: str
    by_seed: Mapping[str, float]
    rows: int
    parameters: int

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.mean(self.by_seed.values())

    @property
    def deviation(self) -> float | None:
        """The standard deviation over the seeds; None for one seed."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None


@dataclass(frozen=True)
class Compared:
    """One model.

    Attributes:
        parameters: the largest number on any task, because heads differ.
        scores: by task.
        mean: the mean over the tasks; None if it has not all of them, or if higher scores are better in only some.
        deviation: standard deviation of the mean over the seeds; None unless all tasks have the same several seeds.
    """

    name: str
    folder: Path
    parameters: int
    scores: Mapping[str, Scores]
    mean: float | None
    deviation: float | None


@dataclass(frozen=True)
class Comparison:
    """The models, the best mean first, and the tasks with the metric of each, in the order in which they were found."""

    models: tuple[Compared, ...]
    metrics: Mapping[str, str]


def compare(folders: Sequence[Path], tasks: Sequence[str] = (), chosen: Sequence[str] = ()) -> Comparison:
    """Compare the models in these folders.

    Args:
        tasks: the tasks to compare, by the names of their folders; all that any model has if empty.
        chosen: "task=metric", for metrics other than the main one.

    Raises:
        UsageError: for a folder without scores, scores that are damaged, or models that were scored on one task with
            other metrics or on other rows.
    """
    metric_of = _chosen(chosen)
    found = {folder: _tasks_of(folder, tasks, metric_of) for folder in dict.fromkeys(folders)}
    names = list(dict.fromkeys(tasks or (task for scores in found.values() for task in scores)))
    for task in (*metric_of, *tasks):
        if not any(task in scores for scores in found.values()):
            have = ", ".join(dict.fromkeys(task for scores in found.values() for task in scores)) or "none"
            raise UsageError(f"{task!r}: no model has scores on this task; they have {have}.")
    metrics = {task: _same(task, found) for task in names}
    signs = {metric in LOWER_IS_BETTER for metric in metrics.values()}
    shown = [_name(folder, found) for folder in found]
    models = [
        _compared(name, folder, scores, names, len(signs) == 1)
        for name, (folder, scores) in zip(shown, found.items(), strict=True)
    ]
    lowest_first = True in signs
    models.sort(key=lambda model: math.inf if model.mean is None else model.mean * (1 if lowest_first else -1))
    return Comparison(tuple(models), metrics)


def _chosen(texts: Sequence[str]) -> dict[str, str]:
    """The metrics that are named as "task=metric"."""
    pairs = [text.partition("=") for text in texts]
    for text, (task, _, metric) in zip(texts, pairs, strict=True):
        if not task or not metric:
            raise UsageError(f"--metric {text!r:.80}: name a task and a metric of it, such as mrpc=macro_f1.")
    return {task: metric for task, _, metric in pairs}


def _tasks_of(folder: Path, tasks: Sequence[str], metric_of: Mapping[str, str]) -> dict[str, Scores]:
    """The scores of a model by task. Raises UsageError if it has none."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder; give one with a folder for each task.")
    scores = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (not tasks or path.name in tasks):
            seeds = [path] if (path / METRICS).exists() else sorted(each.parent for each in path.glob(f"*/{METRICS}"))
            if seeds:
                scores[path.name] = _scores(path, seeds, metric_of.get(path.name))
    if not scores:
        of = f" of {', '.join(tasks)}" if tasks else ""
        raise UsageError(
            f"{folder}: it has no scores{of} (TASK/{METRICS} or TASK/SEED/{METRICS}); `distill run` with a section "
            f"[eval] writes them, and so does `distill eval {folder}/TASK --data FILE --json {folder}/TASK/{METRICS}`."
        )
    return scores


def _scores(folder: Path, seeds: Sequence[Path], metric: str | None) -> Scores:
    """The scores in the folders of a task's seeds."""
    read = {ALONE if path == folder else path.name: _read(path, metric) for path in seeds}
    first = next(iter(read.values()))
    for path, one in zip(seeds, read.values(), strict=True):
        if (one.metric, one.rows) != (first.metric, first.rows):
            raise _differ(path / METRICS, one, seeds[0] / METRICS, first)
    return Scores(
        first.metric,
        {seed: value for seed, one in read.items() for value in one.by_seed.values()},
        first.rows,
        max(one.parameters for one in read.values()),
    )


def _read(folder: Path, metric: str | None) -> Scores:
    """The scores of one metrics.json. Raises UsageError if it is damaged, or lacks the metric."""
    file = folder / METRICS
    content = metrics_of(folder) or {}
    metrics, parameters = content.get("metrics"), content.get("parameters")
    # The number of windows depends on the model's longest row.
    rows = content.get("questions") or content.get("rows")
    if not isinstance(metrics, dict) or not metrics or not all(map(_is_number, (*metrics.values(), rows, parameters))):
        raise UsageError(f"{file}: it holds no scores as `distill eval --json` writes them; score the model again.")
    assert rows is not None
    assert parameters is not None
    name = metric or next(iter(metrics))
    if name not in metrics:
        raise UsageError(f"--metric {folder.name}={name}: {file} has {', '.join(metrics)}; choose one of these.")
    return Scores(name, {ALONE: float(metrics[name])}, int(rows), int(parameters))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _same(task: str, found: Mapping[Path, Mapping[str, Scores]]) -> str:
    """The metric of a task. Raises UsageError if models have different ones, or were scored on other rows."""
    have = {folder: scores[task] for folder, scores in found.items() if task in scores}
    (first_folder, first), *others = have.items()
    for folder, one in others:
        if (one.metric, one.rows) != (first.metric, first.rows):
            raise _differ(folder / task, one, first_folder / task, first)
    return first.metric


def _differ(place: Path, one: Scores, other_place: Path, other: Scores) -> UsageError:
    return UsageError(
        f"{place}: {one.metric} of {one.rows:,} rows, but {other_place} has {other.metric} of {other.rows:,} rows, so "
        "they cannot be compared; score both on the same file."
    )


def _name(folder: Path, all_folders: Mapping[Path, object]) -> str:
    """A folder's name, or its path if another has the same name."""
    is_unique = [other.name for other in all_folders].count(folder.name) == 1
    return folder.name if folder.name and is_unique else str(folder)


def _compared(
    name: str, folder: Path, scores: Mapping[str, Scores], tasks: Sequence[str], is_one_kind: bool
) -> Compared:
    parameters = max(one.parameters for one in scores.values())
    if not is_one_kind or any(task not in scores for task in tasks):
        return Compared(name, folder, parameters, scores, None, None)
    of_tasks = [scores[task] for task in tasks]
    mean = statistics.mean(one.mean for one in of_tasks)
    seeds = [set(one.by_seed) for one in of_tasks]
    deviation = None
    if len(seeds[0]) > 1 and all(each == seeds[0] for each in seeds):
        deviation = statistics.stdev(
            statistics.mean(one.by_seed[seed] for one in of_tasks) for seed in sorted(seeds[0])
        )
    return Compared(name, folder, parameters, scores, mean, deviation)
