"""Torch devices, and their memory as batching needs it: default batch sizes, free bytes, and out-of-memory errors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from shared.errors import UsageError
from shared.models.devices import usable_device
from teacher_dump.workers import worker

# The types in which teachers compute, by their names in --dtype and the manifest.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# On a CPU larger batches are slower, because activations no longer fit its caches (a 6 x 384 encoder took 241
# microseconds a token in batches of 1,024, 267 in batches of 4,096 and 299 in batches of 8,192).
DEFAULT_TOKENS = {"cuda": 16_384, "mps": 8_192, "cpu": 2_048}

# Logits per slice. A CPU reads the projection's weights once per slice, and the next operations find the logits of a
# small slice in its caches: with a 384 x 30,522 projection, slices of 128 to 256 positions took 383 microseconds a
# token, and slices of 549 positions took 400.
SLICE_VALUES = {"cuda": 2**27, "cpu": 2**22}
FEWEST_POSITIONS = 128


def device_named(name: str) -> torch.device:
    """The device that --device names. Raises UsageError if it is not available."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        # Each of several processes on a machine has its own device.
        return torch.device("cuda", worker().local_rank % torch.cuda.device_count())
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is available here; use --device cpu or auto.")
    return usable_device(name)


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of a device that runs batches."""

    device: torch.device

    @property
    def default_tokens(self) -> int:
        """The default number of tokens per batch, including padding."""
        return DEFAULT_TOKENS.get(self.device.type, DEFAULT_TOKENS["cpu"])

    @property
    def is_measured(self) -> bool:
        """Whether `usable_bytes` and `peak_bytes` are supported."""
        return self.device.type == "cuda"

    @property
    def usable_bytes(self) -> int:
        """The free bytes, including those that torch keeps for reuse."""
        return torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """The most bytes in use at any moment of some work, including those that were in use before."""
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device)

    def release(self) -> None:
        """Give memory that torch keeps for reuse back to the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ran_out(self, error: BaseException) -> bool:
        """Whether an error means that memory ran out."""
        return is_out_of_memory(error)


def slice_positions(classes: int, device: torch.device) -> int:
    """The number of positions in a slice of distributions over this many classes."""
    values = SLICE_VALUES.get(device.type, SLICE_VALUES["cpu"])
    return max(FEWEST_POSITIONS, values // classes)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: CUDA has error types for it, other devices only messages."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
    return any(each in str(error).lower() for each in words)
