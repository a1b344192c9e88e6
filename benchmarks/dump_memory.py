"""Peak memory of `dump`: a batch of 16,384 tokens over a vocabulary of 152,064, and a corpus a hundred times as long.

    python benchmarks/dump_memory.py

The baseline of the first figure is a process that computes the model's own logits of one such batch (10 GB in float32),
and of these torch.topk, and torch.logsumexp in slices (of the whole tensor it would make a copy). If the machine has
not enough free memory, this figure is left out with a message. Peaks are the largest resident size of a process. With
QUICK=1: 1,024 tokens, and fewer rows. Writes benchmarks/out/dump_memory.json.
"""

import statistics
import sys

from dump_cases import CAUSAL, LARGE_VOCABULARY, TOP_K, fresh, texts
from memory import WORDS, dump_command, make_corpus, peak_megabytes
from report import Figure, write_figures
from settings import sized
from tiny_teacher import make_teacher

from shared.memory import free_bytes

BATCH_TOKENS = sized(16_384, quick=1_024, tiny=512)
# Texts have 44 tokens on average; rows are what a whole batch needs.
ROWS = BATCH_TOKENS // 32
SMALL, LARGE = sized((1_000, 100_000), quick=(500, 2_500), tiny=(4, 8))
RUNS = sized(3, quick=1, tiny=1)
LOGITS_TARGET, ROWS_TARGET = 0.2, 1.1
# Beside the logits: the model, torch, the batch's states.
BESIDE_LOGITS_BYTES = 2_000_000_000
SLICE = 256


def main() -> None:
    """Measure both figures, print, write."""
    figures = [*of_large_vocabulary(), of_long_corpus()]
    write_figures("dump_memory", figures)


def of_large_vocabulary() -> list[Figure]:
    """Measure `dump` against full logits."""
    ours = peak_megabytes(CAUSAL.command(fresh("dumped"), **options()))
    print(f"dump, {BATCH_TOKENS:,} tokens a batch: {ours:,.0f} MB", flush=True)
    needed, free = BATCH_TOKENS * LARGE_VOCABULARY * 4 + BESIDE_LOGITS_BYTES, free_bytes()
    if free is not None and free < needed:
        print(f"full logits need some {needed / 1e9:.0f} GB and {free / 1e9:.0f} GB are free: not measured")
        return []
    theirs = peak_megabytes([sys.executable, __file__, "full-logits"])
    print(f"full logits of one batch: {theirs:,.0f} MB", flush=True)
    name = f"peak memory, {LARGE_VOCABULARY:,} ids, {BATCH_TOKENS:,} tokens, to full logits"
    return [Figure(name, ours, theirs, LOGITS_TARGET, False, "MB", 1)]


def of_long_corpus() -> Figure:
    """Measure `dump` of many rows against few rows."""
    work = fresh("rows")
    work.mkdir(parents=True)
    make_teacher(work / "teacher", words=WORDS, layers=2, longest=64)
    peaks: dict[int, list[float]] = {SMALL: [], LARGE: []}
    for rows in peaks:
        make_corpus(work / f"{rows}.jsonl", rows)
    for _ in range(RUNS):
        for rows, found in peaks.items():
            found.append(peak_megabytes(dump_command(work / "teacher", work / f"{rows}.jsonl", fresh("dumped"))))
            print(f"dump of {rows:,} rows: {found[-1]:,.0f} MB", flush=True)
    large, small = (statistics.median(peaks[rows]) for rows in (LARGE, SMALL))
    name = f"peak memory of dump, {LARGE:,} rows to {SMALL:,}"
    return Figure(name, large, small, ROWS_TARGET, False, "MB", RUNS)


def options() -> dict[str, int]:
    """The options of `dump`: all rows in one shard, so that its first batch is full."""
    return {"batch_tokens": BATCH_TOKENS, "limit": ROWS, "shard_rows": ROWS}


def full_logits() -> None:
    """The baseline, on the first batch of `dump`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(CAUSAL.teacher).eval()
    tokenizer = AutoTokenizer.from_pretrained(CAUSAL.teacher)
    rows = sorted(tokenizer(texts(ROWS))["input_ids"], key=len, reverse=True)
    inputs = tokenizer.pad({"input_ids": rows[: BATCH_TOKENS // len(rows[0])]}, return_tensors="pt")
    with torch.inference_mode():
        logits_NV = model(**inputs).logits.flatten(0, 1)
        logits_NV.topk(TOP_K)
        for part_NV in logits_NV.split(SLICE):
            part_NV.logsumexp(-1)


if __name__ == "__main__":
    full_logits() if sys.argv[1:] == ["full-logits"] else main()
