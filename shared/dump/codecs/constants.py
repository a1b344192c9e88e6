"""Constants of codecs that are too large for the manifest.

A dump stores them once, in `weights/`; a field of the codec holds their hash.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared.dump.weights.safetensors_file import bytes_of
from shared.errors import DumpError


@dataclass
class Constants:
    """Tensors by name, or None if they are not loaded.

    All instances compare as equal, because the codec's field with the hash already tells different constants apart.
    """

    tensors: dict[str, Tensor] | None = field(default=None, compare=False)

    def known(self, missing: str) -> dict[str, Tensor]:
        """Return the tensors. Raises DumpError with the message `missing` if they are not loaded."""
        if self.tensors is None:
            raise DumpError(missing)
        return self.tensors

    def on(self, device: torch.device, missing: str) -> dict[str, Tensor]:
        """Return the tensors on a device, and keep them there, because the next batch will be there too.

        Raises DumpError with the message `missing` if they are not loaded.
        """
        if any(tensor.device != device for tensor in self.known(missing).values()):
            self.tensors = {name: tensor.to(device) for name, tensor in self.known(missing).items()}
        return self.known(missing)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the tensors' names, types, shapes and values; it does not depend on a file format."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name]
        digest.update(f"{name} {str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}\n".encode())
        digest.update(bytes_of(values))
    return digest.hexdigest()
