"""Tokens per second of `dump` against the teacher alone: the overhead of `dump`.

    python benchmarks/dump_speed.py

The baselines run the same batches, tokenized and padded beforehand, one after the other in inference mode, with the
head on the same slices of positions, and discard the outputs. `chosen` adds torch.topk and torch.logsumexp to the
forward pass and the head. For `dump`, the work on shards is measured, from reading the corpus to the last commit,
without start-up. One torch thread on both sides; the other stages of `dump` have threads of their own, so CPU seconds
are given beside wall seconds (those of `dump` include its folder and card). Medians of interleaved runs. With QUICK=1:
fewer texts. If there is a CUDA device, the masked LM runs there too. Writes benchmarks/out/dump_speed.json.
"""

import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from dump_cases import CASES, MASKED, TEXTS, TOP_K, Case, Padded, into, padded_batches, plan_of
from report import Figure, write_figures
from settings import sized
from torch import Tensor

from shared.memory import keep_freed_memory
from teacher_dump.annotate import annotate
from teacher_dump.engines.transformers.teacher import Teacher
from teacher_dump.plan import Plan

RUNS = sized(5, quick=2, tiny=1)
# Of the baseline's speed.
CHOSEN_TARGET, BARE_TARGET, BUSY_TARGET = 0.95, 0.85, 0.95
CUDA_OPTIONS = {"device": "cuda", "dtype": "bf16", "batch_tokens": 32_768, "limit": TEXTS}
Head = Callable[[Any, Tensor], Tensor]


class Spent(NamedTuple):
    """Seconds of one run: wall seconds, and CPU seconds of all threads together."""

    wall: float
    cpu: float


def main() -> None:
    """Measure every teacher on the CPU, and the first on CUDA."""
    torch.set_num_threads(1)
    keep_freed_memory()
    figures: list[Figure] = []
    for case in CASES:
        figures += compare(case.name, case.head, plan_of(case))
    if torch.cuda.is_available():
        figures += on_cuda(MASKED)
    else:
        print("no CUDA device: nothing is measured there")
    write_figures("dump_speed", figures)


def compare(name: str, head: Head | None, plan: Plan) -> list[Figure]:
    """Measure `dump` and its baselines in turn, for one teacher."""
    batches = padded_batches(plan)
    tokens = sum(padded.tokens for padded in batches)
    alone = partial(teacher_alone, plan.engine.teacher, head, batches)
    sides: dict[str, Callable[[], Spent]] = {
        "dump": partial(dumped, plan),
        "forward and head": partial(alone, choose=False),
    }
    targets = {"forward and head": CHOSEN_TARGET if head is None else BARE_TARGET}
    if head is not None:
        sides["chosen"] = partial(alone, choose=True)
        targets["chosen"] = CHOSEN_TARGET
    spent = in_turn(sides, RUNS)
    print(f"\n{name}: {tokens:,} tokens in {len(batches)} padded batches; microseconds a token, wall and CPU")
    for side, (wall, cpu) in spent.items():
        print(f"  {side:<20}{wall / tokens * 1e6:>9.1f}{cpu / tokens * 1e6:>9.1f}")
    figures = []
    for side, target in targets.items():
        for clock, ours, baseline in zip(("s", "CPU s"), spent["dump"], spent[side], strict=True):
            label, unit = f"{name}: dump against {side}", f"tokens/{clock}"
            figures.append(Figure(label, tokens / ours, tokens / baseline, target, True, unit, RUNS))
    return figures


def in_turn(sides: dict[str, Callable[[], Spent]], runs: int) -> dict[str, Spent]:
    """The medians of every side; all sides run in turn, each time in another order."""
    names, found = list(sides), {name: list[Spent]() for name in sides}
    for number in range(runs):
        for index in range(len(names)):
            name = names[(number + index) % len(names)]
            found[name].append(sides[name]())
    return {name: Spent(*map(statistics.median, zip(*spent, strict=True))) for name, spent in found.items()}


def dumped(plan: Plan, folder: str = "dumped") -> Spent:
    """Write the whole dump into a fresh folder."""
    begun = time.process_time()
    outcome = annotate(into(plan, folder))
    assert outcome.made == plan.manifest.shards
    return Spent(outcome.seconds, time.process_time() - begun)


@torch.inference_mode()
def teacher_alone(teacher: Teacher, head: Head | None, batches: list[Padded], choose: bool) -> Spent:
    """Run forward passes, and the head of a language model on slices of the recorded positions.

    With `choose`, the most probable ids and the normaliser of each position are computed too.
    """
    model: Any = teacher.model
    wall, cpu = time.perf_counter(), time.process_time()
    for padded in batches:
        if head is None or teacher.head is None:
            model(**padded.inputs)
            continue
        hidden_ND = model.base_model(**padded.inputs).last_hidden_state.flatten(0, 1)
        for index_N in padded.index_N.split(teacher.head.slice_positions):
            logits_NV = head(model, hidden_ND[index_N]).float()
            if choose:
                logits_NV.topk(TOP_K)
                logits_NV.logsumexp(-1)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def on_cuda(case: Case) -> list[Figure]:
    """Measure the same in bfloat16 on a GPU, and the share of the time for which it was busy while `dump` ran."""
    plan = plan_of(case, **CUDA_OPTIONS)
    name = f"{case.name}, bf16 on {torch.cuda.get_device_name()}"
    figures = [figure for figure in compare(name, case.head, plan) if figure.unit == "tokens/s"]
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=100", "--id=0"]
    shares: list[float] = []
    for _ in range(RUNS):
        with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as sampler:
            annotate(into(plan, "dumped"))
            sampler.terminate()
            assert sampler.stdout is not None
            shares.append(statistics.mean(float(line) / 100 for line in sampler.stdout))
    return [
        *figures,
        Figure(f"{name}: GPU busy while dumping", statistics.median(shares), 1.0, BUSY_TARGET, True, "share", RUNS),
    ]


if __name__ == "__main__":
    main()
