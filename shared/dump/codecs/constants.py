"""Constants too large for the manifest, kept once a dump in `weights/`: a codec holds their hash among its fields."""

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared.errors import DumpError


@dataclass
class Constants:
    """Tensors by name, where known. All are equal: which they are, a hash among the codec's fields says."""

    tensors: dict[str, Tensor] | None = field(default=None, compare=False)

    def known(self, missing: str) -> dict[str, Tensor]:
        """The tensors. Raises DumpError with the sentence `missing` where they are not known."""
        if self.tensors is None:
            raise DumpError(missing)
        return self.tensors

    def on(self, device: torch.device, missing: str) -> dict[str, Tensor]:
        """The same on a device, where they stay: the next batch comes from there too."""
        if any(tensor.device != device for tensor in self.known(missing).values()):
            self.tensors = {name: tensor.to(device) for name, tensor in self.known(missing).items()}
        return self.known(missing)


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, whatever the file format that carries them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}\n".encode())
        # As bytes, because numpy has no bfloat16.
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
