"""Several processes that train one student, as torchrun starts them: rank 0 writes and speaks for all of them.

A launcher ends every process when one of them fails. What can be foreseen is therefore agreed on first, so that all end
with the same error and say it once; whatever else fails on one rank breaks the next collective call of the others.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState

from shared.errors import LecternError, UsageError

Value = TypeVar("Value")

SECONDS_FOR_THE_MESSAGE = 1.0


def runs_on_cpu(device: str) -> bool:
    """Whether a recipe's device, "auto" or "cpu", is the CPU here."""
    return device == "cpu" or not torch.accelerator.is_available()


def join(device: str) -> None:
    """Meet the other processes that a launcher has started, if any: over gloo on CPUs, NCCL on CUDA devices.

    Raises:
        UsageError: when several were started, but cannot work together on this device.
    """
    # Accelerate remembers the processes of an earlier run.
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=runs_on_cpu(device))
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started > 1 and not dist.is_initialized():
        raise UsageError(
            f"{started} processes were started, but they cannot train together on this device; start one, or set "
            'training.device = "cpu".'
        )


def is_first() -> bool:
    """Whether this process is the one that writes and speaks (before `join`: as the launcher says)."""
    return (dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))) == 0


@contextmanager
def agreed() -> Iterator[None]:
    """A block that every rank runs. What fails on one of them fails on all: rank 0 raises it, the others just end."""
    error: LecternError | None = None
    try:
        yield
    except LecternError as raised:
        error = raised
    for other in gathered(error):
        if other is not None:
            _end_with(other)


def first_does(work: Callable[[], Value]) -> Value:
    """What `work` returns on rank 0, which alone does it. What it raises ends all ranks, as with `agreed`."""
    value: Any = None
    with agreed():
        if is_first():
            value = work()
    return gathered(value)[0]


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def _is_alone() -> bool:
    return count() == 1


def gathered(value: Any) -> list[Any]:
    """Every rank's value, in their order."""
    if _is_alone():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _end_with(error: LecternError) -> None:
    if is_first():
        raise error
    # A launcher that sees one process end, ends the others: rank 0 is to have said why before.
    time.sleep(SECONDS_FOR_THE_MESSAGE)
    raise SystemExit(error.exit_code)
