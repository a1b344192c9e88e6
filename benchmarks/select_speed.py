"""The cost of choosing ids: `Sparse.encode` for each rule, against torch.topk(64) and torch.logsumexp of the logits.

If a temperature is declared, the baseline has another logsumexp.

    python benchmarks/select_speed.py

One slice of 2**24 float32 logits, as in `dump`; one thread; microseconds per position; medians of interleaved runs. The
logits are random, with a few high ones (entropy about 3 nats). The sampled rules read one block for each draw, so they
take a little longer for flatter distributions. QUICK=1: a quarter of the slice, three runs. Writes
benchmarks/out/select_speed.json.
"""

import statistics
import time
from collections.abc import Callable

import torch
from report import Figure, write_figures
from settings import sized
from torch import Tensor

from shared.dump.codecs import Draws, Selection, Sparse, Threshold, TopK, TopP, position_keys
from shared.memory import keep_freed_memory

VOCABULARIES = (30_522, 152_064)
SLICE_VALUES = sized(2**24, quick=2**22, tiny=2**18)
RUNS = sized(7, quick=3, tiny=1)
RULES: tuple[Selection, ...] = (
    TopK(k=64),
    TopP(p=0.98, k=64),
    Threshold(threshold=0.03),
    Threshold(threshold=0.0002, tail="mass"),
    Draws(draws=50),
)


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as `dump` does
    write_figures("select_speed", [figure for vocabulary in VOCABULARIES for figure in figures(vocabulary)])


def figures(vocabulary: int) -> list[Figure]:
    """Each rule at one vocabulary."""
    logits_NV = logits(SLICE_VALUES // vocabulary, vocabulary)
    count = len(logits_NV)
    keys_N = position_keys(0, torch.arange(count), torch.zeros(count, dtype=torch.int64))

    def encode(codec: Sparse) -> Callable[[], object]:
        return lambda: codec.encode(logits_NV, keys_N)

    sides: dict[str, Callable[[], object]] = {
        "torch": lambda: (logits_NV.topk(64), logits_NV.logsumexp(-1)),
        "torch at T = 2": lambda: (logits_NV.topk(64), logits_NV.logsumexp(-1), (logits_NV / 2).logsumexp(-1)),
    }
    for rule in RULES:
        sides[rule.describe()] = encode(Sparse(name="distribution", selection=rule, vocabulary=vocabulary))
    tempered = Sparse(name="distribution", selection=RULES[0], vocabulary=vocabulary, temperatures=(2.0,))
    sides["top 64, log-sum at T = 2"] = encode(tempered)
    micros = {name: seconds / count * 1e6 for name, seconds in interleaved(sides).items()}
    plain, tempered_plain = micros.pop("torch"), micros.pop("torch at T = 2")
    return [
        Figure(
            figure=f"{name}, {vocabulary:,} ids",
            value=value,
            baseline=tempered_plain if "log-sum" in name else plain,
            target=1.0,
            higher_is_better=False,
            unit="us/position",
            runs=RUNS,
        )
        for name, value in micros.items()
    ]


def logits(positions: int, vocabulary: int) -> Tensor:
    """Normally distributed logits, with 30 higher ones at each position."""
    draw = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(positions, vocabulary, generator=draw) * 1.5
    high_NK = torch.randint(vocabulary, (positions, 30), generator=draw)
    return logits_NV.scatter_add_(1, high_NK, torch.rand(positions, 30, generator=draw) * 14)


def interleaved(sides: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each side, after a first run of each that is not measured."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(RUNS + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if run:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


if __name__ == "__main__":
    main()
