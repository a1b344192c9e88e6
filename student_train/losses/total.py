"""The weighted sum of losses for a batch; losses on the logits of a vocabulary share one pass over slices of positions.

Shapes: N recorded positions, M of a slice, V classes, P losses.
"""

import torch
from torch import Tensor, nn

from student_train.forward.outputs import BatchTargets, Outputs
from student_train.forward.sliced_logits import SlicedLogits
from student_train.losses.base import Loss


def total_loss(
    specs: tuple[Loss, ...],
    outputs: Outputs,
    targets: BatchTargets,
    projections: nn.ModuleDict,
    shares: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (the weighted sum, each loss by its name, detached and not weighted).

    Args:
        shares: for each loss, this batch's share (0 to 1) of the terms of a larger batch, [P]. Losses are multiplied by
            it, so that the sums over all parts are the losses of the larger batch. By default 1.
    """
    share_of = torch.ones(len(specs), device=targets.labels_N.device) if shares is None else shares
    in_slices = [index for index, spec in enumerate(specs) if spec.by_position and outputs.sliced is not None]
    total, values = torch.zeros(()), dict[int, Tensor]()
    if outputs.sliced is not None and in_slices:
        total, values = _over_slices({index: specs[index] for index in in_slices}, outputs.sliced, targets, share_of)
    for index, spec in enumerate(specs):
        if index in values:
            continue
        projection = projections[str(index)] if str(index) in projections else None  # noqa: SIM401
        value = share_of[index] * spec.value(outputs, targets, projection)
        values[index] = value.detach()
        total = total.to(value.device) + spec.weight * value
    parts: dict[str, Tensor] = {}
    for index, spec in enumerate(specs):
        parts[spec.label if spec.label not in parts else f"{spec.label}#{index}"] = values[index]
    return total, parts


def _over_slices(
    specs: dict[int, Loss], sliced: SlicedLogits, targets: BatchTargets, share_of: Tensor
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return (the weighted sum, each loss's value by its number)."""
    last = max(specs)
    whole = {index: spec.counted(targets.labels_N).clamp(min=1) for index, spec in specs.items()}

    def slice_loss(part: slice, logits_MV: Tensor) -> tuple[Tensor, Tensor]:
        slice_targets, values = targets.part(part), []
        for index, spec in specs.items():
            # Nothing reads the logits after the last loss, so that one may overwrite them.
            mean = spec.value(Outputs(logits_MV, (), overwrite=index == last), slice_targets, None)
            values.append(mean * (share_of[index] * spec.counted(slice_targets.labels_N) / whole[index]))
        weighted = [spec.weight * value for spec, value in zip(specs.values(), values, strict=True)]
        return torch.stack(weighted).sum(), torch.stack(values)

    total, values_P = sliced.summed_loss(slice_loss)
    return total, dict(zip(specs, values_P, strict=True))
