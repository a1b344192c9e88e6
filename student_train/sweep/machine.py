"""What the machine allows: how many runs side by side, on which device each, with how many threads."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from student_train.recipe.recipe import Recipe

# Before the first run has ended, one is taken to need this much: torch and transformers alone are half of it.
BYTES_OF_A_RUN = 1_000_000_000
THREADS = "OMP_NUM_THREADS"
DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Machine:
    """How a sweep uses this machine: so many `jobs` at once, each with `threads`, on `devices` in turn (none: CPU)."""

    jobs: int
    threads: int
    devices: tuple[str, ...] = ()

    def environment(self, slot: int) -> dict[str, str]:
        """What the job in a slot (0 to jobs - 1) is to find in its environment."""
        chosen = {THREADS: str(self.threads)}
        if self.devices:
            chosen[DEVICES] = self.devices[slot % len(self.devices)]
        return chosen


def machine_for(recipes: Sequence[Recipe], jobs: int | None) -> Machine:
    """The machine for these recipes. Without `jobs`, one a CUDA device, or one a CPU core.

    The threads of a job depend on the number of all recipes, and not on how many of them are left to do: latencies of a
    sweep are all of as many threads. OMP_NUM_THREADS, where it is set, stays as it is.
    """
    devices = _devices() if any(recipe.training.device != "cpu" for recipe in recipes) else ()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(jobs or len(devices) or cores, len(recipes))
    return Machine(jobs, int(os.environ.get(THREADS, 0)) or max(1, cores // jobs), devices)


def has_room(peak_bytes: int) -> bool:
    """Whether one more run fits into memory beside those at work, if it takes what the largest has taken so far."""
    return psutil.virtual_memory().available > max(peak_bytes, BYTES_OF_A_RUN)


def _devices() -> tuple[str, ...]:
    visible = [name for name in os.environ.get(DEVICES, "").split(",") if name]
    count = torch.cuda.device_count()
    return tuple(visible[:count]) if visible else tuple(map(str, range(count)))
