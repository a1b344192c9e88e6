"""Print the tables of RESULTS.md from the metrics.json files that the run.sh scripts of the recipes write.

    python recipes/results.py [--out out]

The seeds of a student are the folders whose names differ in the last number only ("soft-1", or in a sweep
"soft_seed=1"). Scores are means over them, with the standard deviation if there are several; latencies are medians.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Metrics = dict[str, Any]
Column = tuple[str, Callable[[list[Metrics]], str]]


def spread(read: Callable[[Metrics], float | None], digits: int) -> Callable[[list[Metrics]], str]:
    """Return a column of means with standard deviations."""

    def cell(runs: list[Metrics]) -> str:
        values = [value for run in runs if (value := read(run)) is not None]
        if not values:
            return ""
        mean = f"{round(statistics.mean(values), digits) + 0.0:.{digits}f}"  # adding 0.0 turns -0.0 into 0.0
        return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"

    return cell


def seeds(read: Callable[[Metrics], float], digits: int) -> Callable[[list[Metrics]], str]:
    """Return a column of the values of all seeds."""
    return lambda runs: ", ".join(f"{read(run):.{digits}f}" for run in runs)


def latency(batch: str) -> Callable[[list[Metrics]], str]:
    """Return a column of median milliseconds for a batch size."""
    return lambda runs: f"{statistics.median(run['latency_ms'][batch] for run in runs):.1f}"


def percent(key: str) -> Callable[[Metrics], float | None]:
    """Return a reader of a share, in per cent."""
    return lambda run: None if run[key] is None else 100 * run[key]


def score(name: str) -> tuple[Column, Column]:
    """Return two columns of a metric in per cent: its mean, and the values of all seeds."""

    def read(run: Metrics) -> float:
        return 100 * float(run["metrics"][name])

    return (f"{name.replace('_', ' ')}, %", spread(read, 1)), ("each seed", seeds(read, 1))


PARAMETERS: Column = ("parameters", lambda runs: f"{runs[0]['parameters']:,}")
DIVERGENCE: Column = ("KL to the teacher, nats", spread(lambda run: run["divergence"], 3))
CLASSIFICATION = (*score("accuracy"), PARAMETERS)
MEAN_F1: Column = ("mean F1 over languages, %", spread(lambda run: 100 * run["groups"]["mean"]["f1"], 1))
TABLES: dict[str, tuple[str, tuple[Column, ...]]] = {
    "agnews": ("AG News, 500 labels a class, test (7,600 articles)", CLASSIFICATION),
    "agnews-parts": ("AG News: the staged student without one of its parts", CLASSIFICATION),
    "sst2-10": ("SST-2 with a tenth of its labels, test (1,821 sentences)", CLASSIFICATION),
    "sst2-transformers": ("SST-2 with a tenth of its labels: transformers of 2 x 128", CLASSIFICATION),
    "trec": ("TREC with a tenth of its labels, test (500 questions)", CLASSIFICATION),
    "ner": (
        "Named entities in 27 languages, test (26,029 sentences)",
        (MEAN_F1, *score("f1"), PARAMETERS),
    ),
    "squad": ("SQuAD, dev (1,190 questions)", (*score("f1"), *score("exact_match"), PARAMETERS)),
    "sst2": (
        "SST-2, dev (872 sentences)",
        (
            ("accuracy, %", spread(lambda run: 100 * run["metrics"]["accuracy"], 1)),
            ("each seed", seeds(lambda run: 100 * run["metrics"]["accuracy"], 1)),
            ("agreement with the teacher, %", spread(percent("agreement"), 1)),
            DIVERGENCE,
            PARAMETERS,
            ("ms, 1 row", latency("1")),
            ("ms, 32 rows", latency("32")),
        ),
    ),
    "docstrings_lm": (
        "Docstrings, held-out files",
        (
            ("perplexity", spread(lambda run: run["metrics"]["perplexity"], 1)),
            ("each seed", seeds(lambda run: run["metrics"]["perplexity"], 1)),
            ("nats a token", spread(lambda run: run["metrics"]["loss"], 3)),
            DIVERGENCE,
            ("agreement with the teacher, %", spread(percent("agreement"), 1)),
            PARAMETERS,
        ),
    ),
}


def read_runs(folder: Path) -> dict[str, list[Metrics]]:
    """Return name without the seed -> the metrics of each seed, the teacher first.

    Students in the folder itself are sorted by name, those of its sweep by score.
    """
    runs = _by_name([folder / "teacher/metrics.json", *sorted(folder.glob("*/metrics.json"))])
    swept = _by_name(sorted(folder.glob("students/runs/*/metrics.json")))
    return runs | dict(sorted(swept.items(), key=lambda item: statistics.mean(map(_main_score, item[1]))))


def _by_name(paths: list[Path]) -> dict[str, list[Metrics]]:
    runs: dict[str, list[Metrics]] = {}
    for path in dict.fromkeys(path for path in paths if path.is_file()):
        name = re.sub(r"(-|_seed=)\d+$", "", path.parent.name)
        runs.setdefault(name, []).append(json.loads(path.read_text(encoding="utf-8")))
    return runs


def _main_score(run: Metrics) -> float:
    return float(next(iter(run["metrics"].values())))


def by_group(runs: dict[str, list[Metrics]]) -> list[str]:
    """Return the lines of a Markdown table of the main metric of each group, in per cent; none without groups."""
    scored = {name: found for name, found in runs.items() if all(run.get("groups") for run in found)}
    if not scored:
        return []
    groups = next(iter(scored.values()))[0]["groups"]
    main = next(iter(groups["mean"]))
    lines = [f"| {groups['column']} | " + " | ".join(scored) + " |", "|---" * (len(scored) + 1) + "|"]
    for group in [*groups["metrics"], "mean"]:
        cells = []
        for found in scored.values():

            def read(run: Metrics, group: str = group) -> float:
                scores = run["groups"]["mean"] if group == "mean" else run["groups"]["metrics"][group]
                return 100 * float(scores[main])

            cells.append(spread(read, 1)(found))
        lines.append(f"| {group} | " + " | ".join(cells) + " |")
    return lines


def table(runs: dict[str, list[Metrics]], columns: tuple[Column, ...]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| model | " + " | ".join(title for title, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, found in runs.items():
        lines.append(f"| {name} | " + " | ".join(cell(found) for _, cell in columns) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the tables of RESULTS.md.")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the run.sh scripts wrote (default out)")
    args = parser.parse_args()
    found = {name: runs for name in TABLES if (runs := read_runs(args.out / name))}
    if not found:
        print(f"results: {args.out} holds no finished run; start with the run.sh of a recipe.", file=sys.stderr)
        return 1
    for name, runs in found.items():
        title, columns = TABLES[name]
        print(f"### {title}\n\n" + "\n".join(table(runs, columns)) + "\n")
        if groups := by_group(runs):
            print("\n".join(groups) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
