"""Write a safetensors file one tensor at a time, so that the tensors need not all be in memory as bytes.

`safetensors.torch.save` holds a second copy of everything that it writes, which doubles the memory for the weights of a
large teacher. The format is simple: the length of a header, the header in JSON (type, shape and place of each tensor),
and the values.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8


@dataclass(frozen=True)
class Shape:
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return the type and shape of each tensor."""
    return {name: Shape(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def write_tensors(file: IO[bytes], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file.

    Each is looked up twice, for its shape and for its values, so that a mapping which makes its tensors when they are
    looked up never holds all of them.
    """
    shapes = shapes_of(tensors)
    # Wide types first, so that every tensor is aligned when the file is mapped into memory.
    order = sorted(shapes, key=lambda name: (-shapes[name].dtype.itemsize, name))
    entries, end = {}, 0
    for name in order:
        begin, end = end, end + shapes[name].bytes
        facts = shapes[name]
        entries[name] = {"dtype": _NAMES[facts.dtype], "shape": list(facts.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    file.write(len(header).to_bytes(_ALIGNMENT, "little"))
    file.write(header)
    for name in order:
        file.write(bytes_of(tensors[name]))


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the values of a tensor as bytes, little-endian as in memory."""
    # Viewed as bytes, because numpy has no bfloat16.
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
