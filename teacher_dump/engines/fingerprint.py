"""A hash of everything that determines a model's outputs."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint_of(kind: str, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the kind of model, as any text such as JSON, and over every weight."""
    digest = hashlib.sha256(kind.encode())
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
