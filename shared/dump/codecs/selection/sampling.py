"""Random draws of ids: first the block that a random number selects, then the id within the block.

The running sum over blocks is float64, and the running sum within a block starts from 0, so it is as exact at the end
of a large vocabulary as at its start.

Shapes: N positions, V vocabulary, B blocks, S ids of a block (see blocks.py), M draws of a position; concatenated over
positions: H blocks with draws, E drawn ids.
"""

import torch
from torch import Tensor
from torch.nn import functional

from shared.dump.codecs.selection import blocks


def systematic(mass_NV: Tensor, sums_NB: Tensor, step_N1: Tensor, u_N1: Tensor) -> tuple[Tensor, Tensor]:
    """Draw systematically, without replacement: the ids at which the running sum of mass / step passes u + 0, 1, 2, ...

    Args:
        mass_NV: float32, each at most the step.
        sums_NB: float64, sums of the blocks.
        step_N1: float64.
        u_N1: float64 in [0, 1).

    Returns:
        (owners_E, ids_E), position by position, ids sorted. An id without mass is never drawn, and no id is drawn
        twice.
    """
    # In units of the step, with the first mark at 0: a block or an id with start <= m < end contains mark m.
    ends_NB = sums_NB.cumsum(-1) / step_N1 - u_N1
    starts_NB = torch.cat([-u_N1, ends_NB[:, :-1]], dim=-1)
    passed_NB = starts_NB.ceil()
    marks_NB = ends_NB.ceil() - passed_NB
    rows_H, blocks_H = (marks_NB > 0).nonzero(as_tuple=True)
    marks_H1, start_H1, width_H1 = (
        each_NB[rows_H, blocks_H].float()[:, None] for each_NB in (marks_NB, starts_NB - passed_NB, ends_NB - starts_NB)
    )
    running_HS = blocks.gather(mass_NV, rows_H, blocks_H, 0.0).cumsum(-1)
    share_HS = running_HS / running_HS[:, -1:]
    # However sums are rounded, all marks of a block are passed at its last id with mass, and none before its first.
    within_HS = (start_H1 + share_HS * width_H1).ceil_().clamp_(min=0.0)
    passed_HS = torch.where(share_HS < 1, within_HS, marks_H1)
    is_drawn_HS = torch.diff(passed_HS, dim=-1, prepend=torch.zeros_like(marks_H1)) > 0
    return blocks.marked(is_drawn_HS, rows_H, blocks_H)


def with_replacement(mass_NV: Tensor, sums_NB: Tensor, uniforms_NM: Tensor) -> Tensor:
    """Draw independently: for each u in [0, 1), the id at which the running sum passes u times the total, [N, M].

    An id without mass is never drawn.
    """
    ends_NB = sums_NB.cumsum(-1)
    marks_NM = uniforms_NM * ends_NB[:, -1:]
    blocks_NM = _first_beyond(ends_NB, marks_NM)
    # The position of a mark within its block, as a share of the block's mass.
    before_NM = functional.pad(ends_NB, (1, 0)).gather(-1, blocks_NM)
    into_NM = (marks_NM - before_NM) / sums_NB.gather(-1, blocks_NM)
    rows_H = torch.arange(len(mass_NV), device=mass_NV.device).repeat_interleave(marks_NM.shape[-1])
    running_HS = blocks.gather(mass_NV, rows_H, blocks_NM.flatten(), 0.0).cumsum(-1)
    places_H1 = _first_beyond(running_HS, into_NM.view(-1, 1).float() * running_HS[:, -1:])
    return blocks_NM * blocks.SIZE + places_H1.view_as(blocks_NM)


def _first_beyond(running_NM: Tensor, marks_NK: Tensor) -> Tensor:
    """Return the first index at which running sums exceed each mark, [N, K].

    For a mark that rounding has moved to the end of the sums, it is the last index at which they increase.
    """
    first_NK = torch.searchsorted(running_NM, marks_NK, right=True)
    last_N1 = torch.searchsorted(running_NM, running_NM[:, -1:].contiguous())
    return torch.minimum(first_NK, last_N1)
