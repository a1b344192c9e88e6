"""Several processes (ranks) that train one student, as torchrun starts them; rank 0 alone writes files and messages.

A launcher ends all processes when one of them fails. For foreseeable errors, all ranks therefore first agree on whether
one has failed (`agreed`), so that all end with the same error and print it once. Any other error of one rank makes the
next collective call of the others fail.
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
    """Whether a recipe's device, "auto" or "cpu", means the CPU on this machine."""
    return device == "cpu" or not torch.accelerator.is_available()


def join(device: str) -> None:
    """Join the process group of the processes that a launcher has started, if any (gloo on CPUs, NCCL on CUDA).

    Raises:
        UsageError: if several processes were started that cannot train together on this device.
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
    """Whether this process is rank 0, which writes and prints (before `join`, as the launcher's variables say)."""
    return (dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))) == 0


@contextmanager
def agreed() -> Iterator[None]:
    """Run a block on every rank; a LecternError on one of them ends all: rank 0 raises it, the others exit silently."""
    error: LecternError | None = None
    try:
        yield
    except LecternError as raised:
        error = raised
    for other in gathered(error):
        if other is not None:
            _end_with(other)


def first_does(work: Callable[[], Value]) -> Value:
    """Run `work` on rank 0 alone and return its result on every rank. An error ends all ranks, as in `agreed`."""
    value: Any = None
    with agreed():
        if is_first():
            value = work()
    return gathered(value)[0]


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def _is_alone() -> bool:
    return count() == 1


def gathered(value: Any) -> list[Any]:
    """Return the values of all ranks, in the order of the ranks."""
    if _is_alone():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _end_with(error: LecternError) -> None:
    if is_first():
        raise error
    # The launcher ends all processes as soon as one exits, so give rank 0 time to print the message.
    time.sleep(SECONDS_FOR_THE_MESSAGE)
    raise SystemExit(error.exit_code)
