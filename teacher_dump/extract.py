"""A batch through the teacher -> the codecs' columns, in the order of the batch's rows.

Shapes: B rows, L tokens of the longest, N recorded positions, T tokens without padding, D width, V classes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.dump.codecs import Codec, NotFiniteError, position_keys
from shared.dump.manifest import Manifest
from shared.dump.rowgroup import Values, from_flat
from shared.errors import TeacherError
from teacher_dump.batches import Batch
from teacher_dump.teacher import Teacher, forward

Columns = dict[str, Values]

# What of the teacher is broken where a codec refuses it.
_WHAT = {
    "logits": "logits",
    "states": "last hidden states (float16 ends at 65,504; --exact-codec int8 goes further)",
}


@torch.inference_mode()
def extract(teacher: Teacher, manifest: Manifest, batch: Batch, row_numbers: list[int]) -> Columns:
    """Every signal of the manifest for one batch: column name -> N (distributions) or T (vectors) positions.

    Raises:
        TeacherError: for NaN or infinity in what the teacher says, naming the row.
    """
    columns: Columns = {}
    codec = manifest.distribution
    takes = "logits" if codec is None else codec.takes
    output, said_of = forward(teacher, batch.inputs, bool(manifest.vectors), takes)
    if codec is not None:
        owners_N = np.repeat(row_numbers, [len(row.positions) for row in batch.rows])
        slices = []
        for start, said, keys_N in distributions(teacher, manifest, batch, row_numbers, output, said_of):
            try:
                slices.append(codec.encode(said, keys_N))
            except NotFiniteError as error:
                raise broken(owners_N[start + error.position], _WHAT[takes]) from None
        columns |= _on_host(codec, {name: torch.cat([part[name] for part in slices]) for name in slices[0]})
    if manifest.vectors:
        owners_T = np.repeat(row_numbers, [len(row.input_ids) for row in batch.rows])
        real_BL = batch.inputs["attention_mask"].bool()
        for name, vectors in manifest.vectors.items():
            try:
                columns |= _on_host(vectors, vectors.encode(output.hidden_states[vectors.layer][real_BL]))
            except NotFiniteError as error:
                raise broken(owners_T[error.position], name) from None
    return columns


def distributions(
    teacher: Teacher,
    manifest: Manifest,
    batch: Batch,
    row_numbers: list[int],
    output: Any,
    said_of: Callable[[Tensor], Tensor] | None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The recorded positions of a batch that went through `forward`, slice by slice: (the first one's number in the
    batch, what the codec takes of them: float32 logits_NV or states_ND, the positions' keys_N)."""
    owners_N = np.repeat(row_numbers, [len(row.positions) for row in batch.rows])
    positions_N = np.concatenate([row.positions for row in batch.rows])
    keys_N = position_keys(
        manifest.options.seed,
        torch.from_numpy(owners_N.astype(np.int64)),
        torch.from_numpy(positions_N.astype(np.int64)),
    ).to(teacher.device)
    if manifest.recorded == "row":
        yield 0, output.logits.float(), keys_N
        return
    index_N = _flat_positions(batch)
    if said_of is None:
        yield 0, output.logits.flatten(0, 1)[index_N].float(), keys_N
        return
    assert teacher.head is not None
    # States are no wider than the model.
    takes_states = manifest.distribution is not None and manifest.distribution.takes == "states"
    size = max(1, len(index_N)) if takes_states else teacher.head.slice_positions
    for start in range(0, max(1, len(index_N)), size):
        yield start, said_of(index_N[start : start + size]), keys_N[start : start + size]


def _flat_positions(batch: Batch) -> Tensor:
    """Recorded positions as indices into the flattened [B * L]."""
    padded_length = batch.inputs["input_ids"].shape[1]
    flat = [row.positions.astype(np.int64) + index * padded_length for index, row in enumerate(batch.rows)]
    return torch.from_numpy(np.concatenate(flat)).to(batch.inputs["input_ids"].device)


def _on_host(codec: Codec, encoded: dict[str, Tensor]) -> Columns:
    arrays: dict[str, NDArray[Any]] = {name: values.cpu().numpy() for name, values in encoded.items()}
    return from_flat(codec.columns, arrays)


def broken(row: int, what: str) -> TeacherError:
    """The error for a row whose signal no codec can hold."""
    return TeacherError(
        f"row {row}: NaN or infinity in the teacher's {what}. Nothing of its shard was written. "
        "Try --dtype fp32 (half precision overflows in some models), or drop the row."
    )
