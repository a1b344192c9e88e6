"""Tokens per second of `dump` against a simple script for the same purpose.

    python benchmarks/dump_script.py

The script reads texts in file order, pads batches of 32, takes the log-softmax of the model's logits and the 64 most
probable ids, turns tensors into lists, and writes Parquet files (ZSTD) of a fixed number of rows. Both record the same:
the 64 most probable ids of every token with their log-probabilities, and the last hidden state (float16 numbers in the
script, int8 in `dump`). Start-up is not counted; the script runs in its own process, without the environment that
Lectern's command lines set. One torch thread; medians of interleaved runs, and bytes a token. With QUICK=1: fewer
texts. Writes benchmarks/out/dump_script.json.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from dump_cases import MASKED, TOP_K, WORK, fresh, plan_of, texts
from dump_speed import Spent, dumped, in_turn
from report import Figure, write_figures
from settings import sized
from transformers import AutoModelForMaskedLM, AutoTokenizer

from shared.memory import keep_freed_memory

RUNS = sized(5, quick=2, tiny=1)
TARGET = 3.0
SCRIPT = "--script"
BATCH_ROWS, ROWS_A_FILE, MAX_LENGTH = 32, 256, 512
SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "ids": pa.list_(pa.list_(pa.int32())),
        "log_probs": pa.list_(pa.list_(pa.float16())),
        "hidden": pa.list_(pa.list_(pa.float16())),
    }
)


def main() -> None:
    """Run both in turn, print, write."""
    torch.set_num_threads(1)
    keep_freed_memory()
    plan = plan_of(MASKED)
    lines = texts(MASKED.rows)
    tokenizer = AutoTokenizer.from_pretrained(MASKED.teacher)
    tokens = sum(len(ids) for ids in tokenizer(lines, truncation=True, max_length=MAX_LENGTH)["input_ids"])
    spent = in_turn(
        {"dump": partial(dumped, plan), "script": in_a_process},
        RUNS,
    )
    figures = [
        Figure(f"{MASKED.name}: dump against a script", tokens / ours, tokens / theirs, TARGET, True, unit, RUNS)
        for unit, ours, theirs in zip(("tokens/s", "tokens/CPU s"), spent["dump"], spent["script"], strict=True)
    ]
    ours, theirs = (size_of(folder) / tokens for folder in (WORK / "dumped", WORK / "script"))
    figures.append(Figure(f"{MASKED.name}: bytes of dump against a script", ours, theirs, 1.0, False, "bytes/token", 1))
    write_figures("dump_script", figures)


def in_a_process() -> Spent:
    """Run the script in its own process, as its user would."""
    done = subprocess.run([sys.executable, __file__, SCRIPT], check=True, stdout=subprocess.PIPE, text=True)
    return Spent(*json.loads(done.stdout.splitlines()[-1]))


def by_hand() -> Spent:
    """The script."""
    torch.set_num_threads(1)
    model = AutoModelForMaskedLM.from_pretrained(MASKED.teacher).eval()
    tokenizer, lines = AutoTokenizer.from_pretrained(MASKED.teacher), texts(MASKED.rows)
    out = fresh("script")
    out.mkdir()
    wall, cpu = time.perf_counter(), time.process_time()
    for first in range(0, len(lines), ROWS_A_FILE):
        chunk = lines[first : first + ROWS_A_FILE]
        rows: list[dict[str, Any]] = []
        for start in range(0, len(chunk), BATCH_ROWS):
            rows += annotated(model, tokenizer, chunk[start : start + BATCH_ROWS])
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out / f"{first:06d}.parquet", compression="zstd")
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


@torch.inference_mode()
def annotated(model: Any, tokenizer: Any, batch: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a batch, as lists."""
    inputs = tokenizer(list(batch), padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    output = model(**inputs, output_hidden_states=True)
    top = output.logits.log_softmax(-1).topk(TOP_K)
    hidden = output.hidden_states[-1].half()
    rows = []
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        rows.append(
            {
                "input_ids": inputs["input_ids"][row, :length].tolist(),
                "ids": top.indices[row, :length].tolist(),
                "log_probs": top.values[row, :length].half().tolist(),
                "hidden": hidden[row, :length].tolist(),
            }
        )
    return rows


def size_of(folder: Path) -> int:
    """The bytes of the Parquet files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*.parquet"))


if __name__ == "__main__":
    if SCRIPT in sys.argv:
        print(json.dumps(by_hand()))
    else:
        main()
