"""A batch through the teacher -> the codecs' columns, in the order of the batch's rows.

Shapes: B rows, L tokens of the longest, N recorded positions, T tokens without padding, D width, V classes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.dump.codecs import DistributionCodec
from shared.dump.manifest import Manifest
from shared.errors import TeacherError
from teacher_dump.batches import Batch
from teacher_dump.teacher import Teacher, forward

Columns = dict[str, NDArray[Any]]


@torch.inference_mode()
def extract(teacher: Teacher, manifest: Manifest, batch: Batch, row_numbers: list[int]) -> Columns:
    """Every signal of the manifest for one batch: column name -> [N, width] (distributions) or [T, width] (vectors).

    Raises:
        TeacherError: for NaN or infinity in what the teacher says, naming the row.
    """
    output, logits_of = forward(teacher, batch.inputs, want_hidden=bool(manifest.vectors))
    columns: Columns = {}
    if manifest.distribution is not None:
        owners = np.repeat(row_numbers, [len(row.positions) for row in batch.rows])
        encoded = _encode_distribution(teacher, manifest, batch, output, logits_of)
        # A logit of -inf is a class ruled out, and the tail's -inf says that nothing is outside.
        columns |= _to_host(encoded, owners, "logits", lambda values: values.isnan() | values.isposinf())
    if manifest.vectors:
        owners = np.repeat(row_numbers, [len(row.input_ids) for row in batch.rows])
        real_BL = batch.inputs["attention_mask"].bool()
        for name, codec in manifest.vectors.items():
            encoded = codec.encode(output.hidden_states[codec.layer][real_BL])
            columns |= _to_host(encoded, owners, name, lambda values: ~values.isfinite())
    return columns


def _encode_distribution(
    teacher: Teacher, manifest: Manifest, batch: Batch, output: Any, logits_of: Callable[[Tensor], Tensor] | None
) -> dict[str, Tensor]:
    codec = manifest.distribution
    assert codec is not None
    if manifest.recorded == "row":
        return codec.encode(output.logits.float())
    index_N = _flat_positions(batch)
    if logits_of is None:
        return codec.encode(output.logits.flatten(0, 1)[index_N].float())
    assert teacher.head is not None
    return _encode_in_slices(codec, logits_of, index_N, teacher.head.slice_positions)


def _encode_in_slices(
    codec: DistributionCodec, logits_of: Callable[[Tensor], Tensor], index_N: Tensor, slice_positions: int
) -> dict[str, Tensor]:
    slices = [codec.encode(logits_of(part_N)) for part_N in index_N.split(slice_positions)]
    return {name: torch.cat([encoded[name] for encoded in slices]) for name in slices[0]}


def _flat_positions(batch: Batch) -> Tensor:
    """Recorded positions as indices into the flattened [B * L]."""
    padded_length = batch.inputs["input_ids"].shape[1]
    flat = [row.positions.astype(np.int64) + index * padded_length for index, row in enumerate(batch.rows)]
    return torch.from_numpy(np.concatenate(flat)).to(batch.inputs["input_ids"].device)


def _to_host(
    encoded: dict[str, Tensor], owners: NDArray[Any], what: str, is_broken: Callable[[Tensor], Tensor]
) -> Columns:
    for values in encoded.values():
        if values.is_floating_point():
            broken = is_broken(values)
            if broken.any():
                first = int(broken.flatten(1).any(-1).nonzero()[0]) if broken.dim() > 1 else int(broken.nonzero()[0])
                raise TeacherError(
                    f"row {owners[first]}: NaN or infinity in the teacher's {what}. Nothing of its shard was written. "
                    "Try --dtype fp32 (half precision overflows in some models), or drop the row."
                )
    return {name: values.cpu().numpy() for name, values in encoded.items()}
