"""Rows of a vocabulary looked at block by block, so that most of it is read only once.

A block is `SIZE` neighbouring ids; the last one of a row may have fewer. Where the k most probable ids lie, which ids
are above a threshold, and on which id a random number falls is mostly decided by one number a block, its maximum or its
sum: those cost one pass at the speed of memory (4 microseconds for 30,522 ids on one core, where torch.topk takes 60).

Shapes: N positions, V vocabulary, B blocks, S ids of a block, K ids of a position, M any number of values of a
position; of all positions, one after the other: H blocks, E ids.
"""

import torch
from torch import Tensor
from torch.nn import functional

# With 32, the maxima take half as long again; with 128, there is twice as much to look into.
SIZE = 64
# How many blocks there are to be for each id that is looked for: with fewer, too large a part of them is looked into.
_BLOCKS_PER_ID = 4
_LOW_BITS = 2**32 - 1


def maxima(values_NV: Tensor) -> Tensor:
    """The largest value of each block, [N, B]. NaN where the block has one."""
    whole_NBS, last_NR = _split(values_NV)
    last = [last_NR.amax(-1, keepdim=True)] if last_NR.shape[-1] else []
    return torch.cat([whole_NBS.amax(-1), *last], dim=-1)


def sums(values_NV: Tensor) -> Tensor:
    """The sum of each block, float64 [N, B]; within a block it is that of the values' own type."""
    whole_NBS, last_NR = _split(values_NV)
    last = [last_NR.sum(-1, keepdim=True)] if last_NR.shape[-1] else []
    return torch.cat([whole_NBS.sum(-1), *last], dim=-1).double()


def gather(values_NV: Tensor, rows_H: Tensor, blocks_H: Tensor, filling: float) -> Tensor:
    """The values of some blocks, [H, S]; where the last one of a row ends early, `filling`."""
    whole_NBS, last_NR = _split(values_NV)
    count, left = whole_NBS.shape[1], last_NR.shape[1]
    values_HS = whole_NBS[rows_H, blocks_H.clamp(max=count - 1)] if count else values_NV.new_empty((len(rows_H), SIZE))
    if left:
        is_last_H = blocks_H == count
        values_HS[is_last_H] = functional.pad(last_NR[rows_H[is_last_H]], (0, SIZE - left), value=filling)
    return values_HS


def marked(is_marked_HS: Tensor, rows_H: Tensor, blocks_H: Tensor) -> tuple[Tensor, Tensor]:
    """(owners_E, ids_E) of what is marked in some blocks, in the order of the blocks."""
    hits_E, places_E = is_marked_HS.nonzero(as_tuple=True)
    return rows_H[hits_E], blocks_H[hits_E] * SIZE + places_E


def top(values_NV: Tensor, maxima_NB: Tensor, k: int) -> Tensor:
    """The ids of the k <= V largest values of each row, [N, K]: the largest first, among equals the smaller id.

    float32, without NaN. The k-th largest maximum is a bound that the k largest values reach, and few others do.
    """
    if k * _BLOCKS_PER_ID <= maxima_NB.shape[-1]:
        bound_N1 = maxima_NB.topk(k, sorted=False).values.amin(-1, keepdim=True)
        rows_H, blocks_H = (maxima_NB >= bound_N1).nonzero(as_tuple=True)
        values_HS = gather(values_NV, rows_H, blocks_H, torch.nan)
        owners_E, ids_E = marked(values_HS >= bound_N1[rows_H], rows_H, blocks_H)
    else:
        bound_N1 = values_NV.topk(k, sorted=False).values.amin(-1, keepdim=True)
        owners_E, ids_E = (values_NV >= bound_N1).nonzero(as_tuple=True)
    return _largest(values_NV[owners_E, ids_E], ids_E, owners_E, len(values_NV), k)


def _largest(values_E: Tensor, ids_E: Tensor, owners_E: Tensor, count: int, k: int) -> Tensor:
    """The ids of the k largest values of each owner, [N, K].

    Value and id become one whole number, and no two of these are equal: what torch.topk does with equal values depends
    on the batch around them, and teachers in bfloat16 have many.
    """
    # Adding 0 turns -0 into 0. A float's bits, read as a whole number, rise with it; where it is negative, they fall.
    bits_E = (values_E + 0.0).view(torch.int32)
    rising_E = bits_E ^ ((bits_E >> 31) & 0x7FFFFFFF)
    keys_E = (rising_E.long() << 32) | (_LOW_BITS - ids_E)
    counts_N = counted(owners_E, count)
    most = int(counts_N.max()) if count else k
    keys_NM = torch.full((count, most), torch.iinfo(torch.int64).min, device=keys_E.device)
    keys_NM.view(-1)[owners_E * most + ranks(owners_E, counts_N)] = keys_E
    return _LOW_BITS - (keys_NM.topk(k, dim=-1).values & _LOW_BITS)


def counted(owners_E: Tensor, count: int) -> Tensor:
    """How many entries each of `count` owners has, int64 [N]."""
    zeros_N = torch.zeros(count, dtype=torch.int64, device=owners_E.device)
    return zeros_N.index_add_(0, owners_E, torch.ones_like(owners_E))


def ranks(owners_E: Tensor, counts_N: Tensor) -> Tensor:
    """The how manieth of its owner's entries each one is, from 0; owners rise."""
    starts_N = counts_N.cumsum(0) - counts_N
    return torch.arange(len(owners_E), device=owners_E.device) - starts_N[owners_E]


def _split(values_NV: Tensor) -> tuple[Tensor, Tensor]:
    """(the whole blocks [N, B, S], what is left of each row [N, R])."""
    blocks = values_NV.shape[-1] // SIZE
    return values_NV[:, : blocks * SIZE].unflatten(-1, (blocks, SIZE)), values_NV[:, blocks * SIZE :]
