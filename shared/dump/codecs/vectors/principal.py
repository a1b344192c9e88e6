"""Principal components: the directions in which vectors vary most.

Shapes: M vectors, D width, R rank.
"""

import torch
from torch import Tensor

SLICE_VECTORS = 1 << 16


def principal_components(sample_MD: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return (mean [D], the `rank` directions of largest variance as orthonormal rows [R, D]), float32."""
    mean_D = sample_MD.mean(0, dtype=torch.float64)
    # A slice at a time, because a teacher's embeddings may be gigabytes.
    centred = (slice_MD.double() - mean_D for slice_MD in sample_MD.split(SLICE_VECTORS))
    _, directions_DD = torch.linalg.eigh(sum(slice_MD.T @ slice_MD for slice_MD in centred))
    basis_RD = directions_DD.flip(-1).T[:rank]
    # An eigenvector's sign is arbitrary. The largest component is made positive, so that the basis is reproducible.
    largest_R1 = basis_RD.gather(-1, basis_RD.abs().argmax(-1, keepdim=True))
    return mean_D.float(), (basis_RD * largest_R1.sign()).float().contiguous()
