"""Torch devices: which one an option means; of its memory, what batching has to know: how many tokens to begin with,
how much there is, and how an error says that it ran out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from shared.errors import UsageError
from teacher_dump.workers import worker

# The types in which teachers compute, as --dtype and the manifest name them.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# On a CPU larger batches are slower: what a layer hands to the next no longer fits its caches (a 6 x 384 encoder took
# 241 microseconds a token in batches of 1,024, 267 in batches of 4,096 and 299 in batches of 8,192).
DEFAULT_TOKENS = {"cuda": 16_384, "mps": 8_192, "cpu": 2_048}

# Logits of a slice. A CPU reads the projection's weights once a slice, and everything after it finds the logits in its
# caches: slices of 128 to 256 positions took 383 microseconds a token of a 384 x 30,522 projection, 549 took 400.
SLICE_VALUES = {"cuda": 2**27, "cpu": 2**22}
FEWEST_POSITIONS = 128


def device_named(name: str) -> torch.device:
    """What --device means. Raises UsageError for a device that is not there."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        # Each of several processes on a machine has a device of its own.
        return torch.device("cuda", worker().local_rank % torch.cuda.device_count())
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is available here; use --device cpu or auto.")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r}: unknown device; use auto, cpu, cuda, cuda:1 or mps.") from None


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of a device that batches are run on."""

    device: torch.device

    @property
    def default_tokens(self) -> int:
        """Tokens a batch, padding counted, where nobody says how many."""
        return DEFAULT_TOKENS.get(self.device.type, DEFAULT_TOKENS["cpu"])

    @property
    def is_measured(self) -> bool:
        """Whether `usable_bytes` and `peak_bytes` can be asked for."""
        return self.device.type == "cuda"

    @property
    def usable_bytes(self) -> int:
        """What is free, or is kept for reuse."""
        return torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """The most that was in use at any moment of some work, what was in use before included."""
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device)

    def release(self) -> None:
        """Give back what is kept for reuse."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ran_out(self, error: BaseException) -> bool:
        """Whether an error says that memory ran out."""
        return is_out_of_memory(error)


def slice_positions(classes: int, device: torch.device) -> int:
    """At how many positions to ask for distributions over so many classes at a time."""
    values = SLICE_VALUES.get(device.type, SLICE_VALUES["cpu"])
    return max(FEWEST_POSITIONS, values // classes)


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA says so by the error's type, other devices in words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
    return any(each in str(error).lower() for each in words)
