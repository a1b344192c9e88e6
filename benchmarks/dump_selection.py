"""The disk space and the time of `dump` for each way to keep distributions.

    python benchmarks/dump_selection.py

Bytes are those of the distribution's columns in the shards, per recorded position. Ids and kept mass are the
measurements in the manifest. Tokens per second are those of whole dumps without hidden states, medians of interleaved
runs, one torch thread. Distributions over labels are kept completely (`--dense`), with another teacher. With QUICK=1:
fewer texts. Writes benchmarks/out/dump_selection.json.
"""

from functools import partial
from typing import Any

import pyarrow.parquet as pq
import torch
from dump_cases import CLASSIFIER, LABELS, MASKED, TOP_K, WORK, plan_of
from dump_speed import dumped, in_turn
from report import Figure, write_figures
from settings import sized

from shared import Dump
from shared.dump.integrity.receipts import shard_path
from shared.dump.shards import column_sizes
from shared.memory import keep_freed_memory
from shared.storage import Folder
from teacher_dump.plan import Plan
from teacher_dump.request import Request

RUNS = sized(5, quick=1, tiny=1)
# Of the speed with --top-k.
TARGET = 0.9
NO_HIDDEN = {"hidden": "none", "hidden_codec": "float16"}
TOP = f"--top-k {TOP_K}"
RULES: dict[str, dict[str, Any]] = {
    TOP: {"top_k": TOP_K},
    "--preset default": {"preset": "default"},
    "--threshold 0.03 --tail mass": {"threshold": 0.03, "tail": "mass"},
    "--top-p 0.95 --top-k 100": {"top_p": 0.95, "top_k": 100},
    "--draws 50": {"draws": 50},
}
# Measurements on a sample, and the widths of their columns.
SHOWN = {"ids_per_position": 8, "kept_mass": 11}
if "exact" in Request.__dataclass_fields__:
    RULES["--exact"] = {"exact": True}


def main() -> None:
    """Measure, print the table, write the speeds as figures."""
    torch.set_num_threads(1)
    keep_freed_memory()
    plans = {name: plan_of(MASKED, **NO_HIDDEN | {"top_k": None} | rule) for name, rule in RULES.items()}
    plans[f"--dense, {LABELS} labels"] = plan_of(CLASSIFIER, **NO_HIDDEN)
    folders = {name: f"dumped-{number}" for number, name in enumerate(plans)}
    sides = {name: partial(dumped, plan, folders[name]) for name, plan in plans.items()}
    spent = in_turn(sides, RUNS)
    print(f"\n{'':<32}{'bytes':>8}{'ids':>8}{'kept mass':>11}{'tokens/s':>10}{'/CPU s':>8}")
    speeds = {}
    for name, plan in plans.items():
        size, tokens = weighed(plan, folders[name])
        speeds[name] = tokens / spent[name].cpu
        facts = plan.manifest.measured.get("distribution", {})
        cells = "".join(f"{f'{facts[key]:.3g}' if key in facts else '':>{width}}" for key, width in SHOWN.items())
        print(f"{name:<32}{size:>8.1f}{cells}{tokens / spent[name].wall:>10,.0f}{speeds[name]:>8,.0f}")
    of_vocabulary = [name for name in RULES if name != TOP]
    unit = "tokens/CPU s"
    figures = [Figure(f"{n} against {TOP}", speeds[n], speeds[TOP], TARGET, True, unit, RUNS) for n in of_vocabulary]
    write_figures("dump_selection", figures)


def weighed(plan: Plan, name: str) -> tuple[float, int]:
    """(bytes of the distribution per recorded position, tokens) of a finished dump."""
    folder, shards = WORK / name, range(plan.manifest.shards)
    receipts = Dump(folder).receipts.values()
    sizes = column_sizes(pq.ParquetFile(shard_path(Folder.of(folder), index).local).metadata for index in shards)
    distribution = plan.manifest.distribution
    assert distribution is not None
    size = sum(sizes[column.name] for column in distribution.columns)
    return size / sum(receipt.positions for receipt in receipts), sum(receipt.tokens for receipt in receipts)


if __name__ == "__main__":
    main()
