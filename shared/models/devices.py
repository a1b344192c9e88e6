"""Torch devices by the names that users give."""

import torch

from shared.errors import UsageError


def usable_device(name: str) -> torch.device:
    """Return the device with this name ("cpu", "cuda:1"). Raises UsageError if nothing can be computed on it here."""
    try:
        device = torch.device(name)
        usable = bool((torch.ones(1, device=device) == 1).all()) if device.type != "meta" else False
        reason = "it holds no values"
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        usable, reason = False, str(error).split("\n")[0].rstrip(".")
    if not usable:
        raise UsageError(f"device {name!r} cannot be used here ({reason}); use auto, cpu, cuda, cuda:1 or mps.")
    return device
