"""Torch devices by the names that users give."""

import torch

from shared.errors import UsageError


def usable_device(name: str) -> torch.device:
    """Return the device with this name ("cpu", "cuda:1"). Raises UsageError if there is no such device here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise _unusable(name, "it is unknown") from None
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if device.type not in counts:
        raise _unusable(name, "models are not run on it")
    if (device.index or 0) >= counts[device.type]:
        raise _unusable(name, f"this machine has {counts[device.type] or 'none'} of that kind")
    return device


def _unusable(name: str, reason: str) -> UsageError:
    return UsageError(f"--device {name!r} cannot be used here: {reason}; use auto, cpu, cuda, cuda:1 or mps.")
