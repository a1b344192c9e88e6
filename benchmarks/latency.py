"""The latency of several model folders on the same rows: medians of interleaved forward passes, and speed-ups.

    python benchmarks/latency.py TEACHER STUDENT ... --data FILE

One thread; batches of 1 and 32, made of the first rows of the file, truncated to the length that all models support and
padded to the longest row of the batch. Models run in torch, and also in onnxruntime if a folder has a model.onnx
(`distill export`); speed-ups over the first folder are within the same runtime. Each model uses its own tokenizer.
QUICK=1: fewer turns.
"""

import argparse
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from report import machine
from settings import OUT, sized

from shared.text.columns import ColumnNames
from student_train.data.sources import Source, TextSource, load_tokenizer
from student_train.scoring.latency import latencies
from student_train.scoring.models import load_model, longest_row
from student_train.scoring.runtimes import MODEL_FILE, OnnxRuntime, Runtime, TorchRuntime

# For each runtime and batch size, times the number of models.
SECONDS = sized(10.0, quick=2.0, tiny=0.1)


def main() -> None:
    """Time all folders, print the table, write benchmarks/out/latency.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="the first is what others are held to")
    parser.add_argument("--data", required=True, help="rows as of `distill eval`; labels are not needed")
    parser.add_argument("--task", help="by default what the architectures say")
    for field in fields(ColumnNames):
        parser.add_argument("--" + field.name.replace("_", "-"), default=field.default)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ColumnNames(**{field.name: getattr(arguments, field.name) for field in fields(ColumnNames)})
    by_runtime = _runners(arguments.folders, arguments.data, arguments.task, names)
    rows = []
    for runtime, runners in by_runtime.items():
        folders = list(runners)
        for folder, medians in zip(folders, latencies(list(runners.values()), SECONDS), strict=True):
            rows += [_row(runtime, size, folder, value) for size, value in medians.items()]
    _compare(rows, arguments.folders[0])
    file = OUT / "latency.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"machine": machine(), "data": arguments.data, "rows": rows}, indent=2) + "\n")
    print(f"one thread; {machine()}; written to {file}")


def _runners(
    folders: list[Path], data: str, task_name: str | None, names: ColumnNames
) -> dict[str, dict[Path, tuple[Runtime, Source]]]:
    """Runtime -> folder -> (the loaded model, its rows)."""
    loaded = {folder: (*load_model(folder, task_name), load_tokenizer(str(folder))) for folder in folders}
    length = min(longest_row(model, tokenizer) for model, _, tokenizer in loaded.values())
    by_runtime: dict[str, dict[Path, tuple[Runtime, Source]]] = {"torch": {}, "onnxruntime": {}}
    for folder, (model, task, tokenizer) in loaded.items():
        labels = task.label_names_of(model.config)
        columns = task.columns(names, labels_required=False)
        source = TextSource(task, [data], columns, tokenizer, length, labels)
        by_runtime["torch"][folder] = (TorchRuntime(model), source)
        if (folder / MODEL_FILE).exists():
            by_runtime["onnxruntime"][folder] = (OnnxRuntime(folder / MODEL_FILE), source)
    return {runtime: runners for runtime, runners in by_runtime.items() if runners}


def _row(runtime: str, size: int, folder: Path, milliseconds: float) -> dict[str, Any]:
    return {"runtime": runtime, "batch": size, "model": str(folder), "ms": milliseconds}


def _compare(rows: list[dict[str, Any]], first: Path) -> None:
    """Add each row's speed-up over the first folder with the same runtime and batch (None without it), and print."""
    baseline = {(row["runtime"], row["batch"]): row["ms"] for row in rows if row["model"] == str(first)}
    print(f"{'runtime':<14}{'batch':>6}{'median ms':>12}{'speed-up':>10}  model")
    for row in sorted(rows, key=lambda row: (row["runtime"] != "torch", row["batch"])):
        of_first = baseline.get((row["runtime"], row["batch"]))
        row["speed_up"] = None if of_first is None else of_first / row["ms"]
        speed_up = "" if of_first is None else f"{row['speed_up']:.1f} x"
        print(f"{row['runtime']:<14}{row['batch']:>6}{row['ms']:>12.3f}{speed_up:>10}  {row['model']}")


if __name__ == "__main__":
    main()
