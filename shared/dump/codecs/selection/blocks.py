"""Vocabulary-wide values in blocks, so that most values are read only once.

A block is `SIZE` neighbouring ids; the last block of a position may have fewer. One number per block, its maximum or
sum, is mostly enough to find the k most probable ids, the ids above a threshold, or the id that a random number
selects. These numbers take one pass at memory speed (4 microseconds for 30,522 ids on one core, where torch.topk takes
60).

Shapes: N positions, V vocabulary, B blocks, S ids of a block, K ids of a position, M any number of values of a
position, R values after the last whole block; concatenated over positions: H blocks, E ids.
"""

import torch
from torch import Tensor
from torch.nn import functional

# With 32, computing the maxima takes 1.5 times as long; with 128, twice as many values of blocks are read.
SIZE = 64
# The fewest blocks per requested id: with fewer blocks, too large a part of them would be read.
_BLOCKS_PER_ID = 4
_LOW_BITS = 2**32 - 1


def maxima(values_NV: Tensor) -> Tensor:
    """Return the largest value of each block, [N, B]; NaN for a block with a NaN."""
    whole_NBS, last_NR = _split(values_NV)
    last = [last_NR.amax(-1, keepdim=True)] if last_NR.shape[-1] else []
    return torch.cat([whole_NBS.amax(-1), *last], dim=-1)


def sums(values_NV: Tensor) -> Tensor:
    """Return the sum of each block, float64 [N, B]; within a block, sums are computed in the type of the values."""
    whole_NBS, last_NR = _split(values_NV)
    last = [last_NR.sum(-1, keepdim=True)] if last_NR.shape[-1] else []
    return torch.cat([whole_NBS.sum(-1), *last], dim=-1).double()


def gather(values_NV: Tensor, rows_H: Tensor, blocks_H: Tensor, filling: float) -> Tensor:
    """Return the values of some blocks, [H, S]; a shorter last block is padded with `filling`."""
    whole_NBS, last_NR = _split(values_NV)
    count, left = whole_NBS.shape[1], last_NR.shape[1]
    values_HS = whole_NBS[rows_H, blocks_H.clamp(max=count - 1)] if count else values_NV.new_empty((len(rows_H), SIZE))
    if left:
        is_last_H = blocks_H == count
        values_HS[is_last_H] = functional.pad(last_NR[rows_H[is_last_H]], (0, SIZE - left), value=filling)
    return values_HS


def marked(is_marked_HS: Tensor, rows_H: Tensor, blocks_H: Tensor) -> tuple[Tensor, Tensor]:
    """Return (owners_E, ids_E) of the ids that are marked in some blocks, in the order of the blocks."""
    hits_E, places_E = is_marked_HS.nonzero(as_tuple=True)
    return rows_H[hits_E], blocks_H[hits_E] * SIZE + places_E


def top(values_NV: Tensor, maxima_NB: Tensor, k: int) -> Tensor:
    """Return the ids of the k <= V largest values of each position, [N, K], largest value first; ties by smaller id.

    Values are float32 without NaN. The k largest values, and few others, reach the k-th largest maximum of a block.
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
    """Return the ids of the k largest values of each owner, [N, K].

    Value and id are combined into one integer, so that no two are equal. The order in which torch.topk returns equal
    values depends on the batch, and teachers in bfloat16 have many equal values.
    """
    # Adding 0 turns -0 into 0. A float's bits, read as an integer, increase with it; if it is negative, they decrease.
    bits_E = (values_E + 0.0).view(torch.int32)
    rising_E = bits_E ^ ((bits_E >> 31) & 0x7FFFFFFF)
    keys_E = (rising_E.long() << 32) | (_LOW_BITS - ids_E)
    counts_N = counted(owners_E, count)
    most = int(counts_N.max()) if count else k
    keys_NM = torch.full((count, most), torch.iinfo(torch.int64).min, device=keys_E.device)
    keys_NM.view(-1)[owners_E * most + ranks(owners_E, counts_N)] = keys_E
    return _LOW_BITS - (keys_NM.topk(k, dim=-1).values & _LOW_BITS)


def counted(owners_E: Tensor, count: int) -> Tensor:
    """Return the number of entries of each of `count` owners, int64 [N]."""
    zeros_N = torch.zeros(count, dtype=torch.int64, device=owners_E.device)
    return zeros_N.index_add_(0, owners_E, torch.ones_like(owners_E))


def ranks(owners_E: Tensor, counts_N: Tensor) -> Tensor:
    """Return the number of each entry within its owner's entries, from 0; owners must be sorted."""
    starts_N = counts_N.cumsum(0) - counts_N
    return torch.arange(len(owners_E), device=owners_E.device) - starts_N[owners_E]


def _split(values_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Return (the whole blocks [N, B, S], the values after them [N, R])."""
    blocks = values_NV.shape[-1] // SIZE
    return values_NV[:, : blocks * SIZE].unflatten(-1, (blocks, SIZE)), values_NV[:, blocks * SIZE :]
