"""How a sweep uses the machine: the number of runs at the same time, their devices and their threads."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from student_train.recipe.recipe import Recipe

# Assumed memory of a run until the first one has ended: torch and transformers alone take half of it.
BYTES_OF_A_RUN = 1_000_000_000
THREADS = "OMP_NUM_THREADS"
DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Machine:
    """How a sweep uses this machine: `jobs` at the same time, each with `threads`, on `devices` in turn (none: CPU)."""

    jobs: int
    threads: int
    devices: tuple[str, ...] = ()

    def environment(self, slot: int) -> dict[str, str]:
        """Return the environment variables for the job in a slot (0 to jobs - 1)."""
        chosen = {THREADS: str(self.threads)}
        if self.devices:
            chosen[DEVICES] = self.devices[slot % len(self.devices)]
        return chosen


def machine_for(recipes: Sequence[Recipe], jobs: int | None) -> Machine:
    """Return the machine for these recipes; by default one job per CUDA device or CPU core.

    The number of threads of a job depends on the number of all recipes, finished or not, so that all latencies of a
    sweep are measured with the same number of threads. OMP_NUM_THREADS takes precedence if it is set.
    """
    devices = _devices() if any(recipe.training.device != "cpu" for recipe in recipes) else ()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(jobs or len(devices) or cores, len(recipes))
    return Machine(jobs, int(os.environ.get(THREADS, 0)) or max(1, cores // jobs), devices)


def has_room(peak_bytes: int) -> bool:
    """Whether one more run fits into memory, assuming that it needs as much as the largest run so far."""
    return psutil.virtual_memory().available > max(peak_bytes, BYTES_OF_A_RUN)


def _devices() -> tuple[str, ...]:
    visible = [name for name in os.environ.get(DEVICES, "").split(",") if name]
    count = torch.cuda.device_count()
    return tuple(visible[:count]) if visible else tuple(map(str, range(count)))
