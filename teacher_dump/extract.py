"""Run the teacher over a batch and encode its outputs as Parquet columns, in the order of the batch's rows.

Shapes: N recorded positions, T tokens without padding, D width, V classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.dump.codecs import Mixtures, NotFiniteError, position_keys
from shared.dump.manifest import Manifest
from shared.dump.rowgroup import Values, from_flat
from shared.errors import TeacherError
from teacher_dump.engines.base import Engine, TeacherOutputs, Wanted
from teacher_dump.engines.batch import Batch

Columns = dict[str, Values]

# What a codec takes -> its name in the error for NaN or infinity.
_WHAT = {
    "logits": "logits",
    "states": "last hidden states (the largest float16 is 65,504; --exact-codec int8 can hold more)",
}


@dataclass(frozen=True)
class Encoded:
    """A batch's columns, perhaps still being copied to the host.

    Attributes:
        tensors: the outputs of the codecs' `encode`, in the host's memory.
        copied: the event that ends the copy; None if there is nothing to wait for.
    """

    tensors: dict[str, Tensor]
    copied: torch.cuda.Event | None

    def columns(self, manifest: Manifest) -> Columns:
        """Column name -> one entry for each token, recorded position or row of the batch. Waits for the copy."""
        if self.copied is not None:
            self.copied.synchronize()
        arrays: dict[str, NDArray[Any]] = {name: values.numpy() for name, values in self.tensors.items()}
        columns: Columns = {}
        for signal in manifest.signals:
            columns |= from_flat(signal.columns, arrays)
        return columns


@torch.inference_mode()
def extract(engine: Engine, manifest: Manifest, batch: Batch) -> Encoded:
    """Every signal of the manifest for one batch, encoded.

    Raises:
        TeacherError: for NaN or infinity in the teacher's outputs, naming the row.
    """
    batch = batch.to(engine.device)
    codec = manifest.distribution
    outputs = engine.run(batch, Wanted.of(codec.takes if codec else None, manifest.vector_signals))
    tensors: dict[str, Tensor] = {}
    if codec is not None:
        slices = []
        for start, taken, keys_N in distributions(manifest, batch, outputs):
            try:
                slices.append(codec.encode(taken, keys_N))
            except NotFiniteError as error:
                raise broken(batch.owners("position")[start + error.position], _WHAT[codec.takes]) from None
        tensors |= {name: torch.cat([part[name] for part in slices]) for name in slices[0]}
    for signal, vectors in zip(manifest.vector_signals, manifest.vectors.values(), strict=True):
        try:
            tensors |= vectors.encode(outputs.vectors[signal.key])
        except NotFiniteError as error:
            raise broken(batch.owners(signal.per)[error.position], signal.name) from None
    if manifest.mixtures is not None and batch.mixtures:
        tensors |= _mixtures(engine, manifest.mixtures, batch)
    return _to_host(tensors)


def _mixtures(engine: Engine, codec: Mixtures, batch: Batch) -> dict[str, Tensor]:
    """The columns of a batch's mixtures, for which the teacher runs again."""
    shape = len(batch.rows), codec.draws
    logits_PC = torch.empty(shape[0] * shape[1], codec.classes, device=engine.device)
    for part in batch.mixed:
        found_MC = engine.mixed_logits(part.inputs)
        logits_PC[torch.from_numpy(part.places).to(engine.device)] = found_MC.to(logits_PC)
    drawn = [mixture for of_row in batch.mixtures for mixture in of_row]
    partners_BD = torch.tensor([mixture.number for mixture in drawn]).reshape(shape)
    weights_BD = torch.tensor([mixture.weight for mixture in drawn], dtype=torch.float16).reshape(shape)
    try:
        return codec.encode(partners_BD, weights_BD, logits_PC.reshape(*shape, codec.classes))
    except NotFiniteError as error:
        raise broken(batch.numbers[error.position], "logits for mixtures of the row with others") from None


def distributions(manifest: Manifest, batch: Batch, outputs: TeacherOutputs) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the recorded positions of a batch in slices.

    Each slice is (number of its first position within the batch, float32 logits_NV or states_ND as the codec takes
    them, and the positions' keys_N).
    """
    assert outputs.distribution_at is not None
    owners_N = torch.from_numpy(batch.owners("position"))
    positions_N = torch.cat([torch.from_numpy(row.positions) for row in batch.rows]).long()
    keys_N = position_keys(manifest.options.seed, owners_N, positions_N)
    by_row = manifest.layout.by_row
    index_N = torch.arange(len(batch.rows)) if by_row else torch.from_numpy(batch.position_index())
    size = outputs.slice_positions or max(1, len(index_N))
    for start in range(0, max(1, len(index_N)), size):
        taken = outputs.distribution_at(index_N[start : start + size])
        yield start, taken, keys_N[start : start + size].to(taken.device)


def _to_host(tensors: dict[str, Tensor]) -> Encoded:
    """Start copying to pinned memory, which is reused; the device makes the copy during the next batch."""
    if not any(tensor.is_cuda for tensor in tensors.values()):
        return Encoded({name: tensor.cpu() for name, tensor in tensors.items()}, None)
    on_host = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        for name, tensor in tensors.items()
    }
    copied = torch.cuda.Event()
    copied.record()
    return Encoded(on_host, copied)


def broken(row: int, what: str) -> TeacherError:
    """The error for NaN or infinity in a signal of a row."""
    return TeacherError(
        f"row {row}: NaN or infinity in the teacher's {what}. Nothing of its shard was written. "
        "Try --dtype fp32 (half precision overflows in some models), or drop the row."
    )
