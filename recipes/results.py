"""The tables of RESULTS.md, from the metrics.json files that the recipes' run.sh scripts leave behind.

    python recipes/results.py [--out out]

A student's seeds are the folders that differ in their last number only. Scores are means over them, with the standard
deviation where there are several; latencies are medians.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Metrics = dict[str, Any]
Column = tuple[str, Callable[[list[Metrics]], str]]


def spread(read: Callable[[Metrics], float | None], digits: int) -> Callable[[list[Metrics]], str]:
    """A column of means, with standard deviations."""

    def cell(runs: list[Metrics]) -> str:
        values = [value for run in runs if (value := read(run)) is not None]
        if not values:
            return ""
        mean = f"{round(statistics.mean(values), digits) + 0.0:.{digits}f}"  # 0.0 turns -0.0 round
        return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"

    return cell


def seeds(read: Callable[[Metrics], float], digits: int) -> Callable[[list[Metrics]], str]:
    """A column of every seed's value."""
    return lambda runs: ", ".join(f"{read(run):.{digits}f}" for run in runs)


def latency(batch: str) -> Callable[[list[Metrics]], str]:
    """A column of median milliseconds of a batch."""
    return lambda runs: f"{statistics.median(run['latency_ms'][batch] for run in runs):.1f}"


def percent(key: str) -> Callable[[Metrics], float | None]:
    """A share as per cent."""
    return lambda run: None if run[key] is None else 100 * run[key]


PARAMETERS: Column = ("parameters", lambda runs: f"{runs[0]['parameters']:,}")
DIVERGENCE: Column = ("KL to the teacher, nats", spread(lambda run: run["divergence"], 3))
TABLES: dict[str, tuple[str, tuple[Column, ...]]] = {
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
    """Name without the seed -> the metrics of each seed; the teacher first."""
    runs: dict[str, list[Metrics]] = {}
    for path in sorted(folder.glob("*/metrics.json"), key=lambda path: (path.parent.name != "teacher", path)):
        name = path.parent.name
        stem, _, seed = name.rpartition("-")
        runs.setdefault(stem if seed.isdigit() else name, []).append(json.loads(path.read_text(encoding="utf-8")))
    return runs


def table(runs: dict[str, list[Metrics]], columns: tuple[Column, ...]) -> list[str]:
    """Lines of a Markdown table."""
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
        print(f"results: nothing is finished in {args.out}; start with recipes/sst2/run.sh", file=sys.stderr)
        return 1
    for name, runs in found.items():
        title, columns = TABLES[name]
        print(f"### {title}\n\n" + "\n".join(table(runs, columns)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
