"""The reconstruction error of a vector codec, in a few numbers.

Shapes: M vectors, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Reconstruction(NamedTuple):
    """The reconstruction error of some vectors.

    Attributes:
        relative_error: squared error divided by squared length, both summed over all vectors.
        cosine: mean cosine similarity of vectors and their reconstructions, without vectors of length 0.
        channel_error: squared error divided by variance, the median over channels. The other two say little if a few
            channels are far larger than the others: a codec that keeps only those has a cosine near 1.
    """

    relative_error: float
    cosine: float
    channel_error: float

    @classmethod
    def of(cls, exact_MD: Tensor, found_MD: Tensor) -> "Reconstruction":
        """Compare exact vectors with their reconstructions, in float64."""
        exact_MD, found_MD = exact_MD.double(), found_MD.double()
        squared_MD = (found_MD - exact_MD).square()
        variance_D = exact_MD.var(0, correction=0)
        varies_D = variance_D > 0
        has_length_M = exact_MD.norm(dim=-1) > 0
        cosine_M = torch.nn.functional.cosine_similarity(found_MD, exact_MD, dim=-1)[has_length_M]
        return cls(
            relative_error=_ratio(squared_MD.sum(), exact_MD.square().sum()),
            cosine=cosine_M.mean().item() if len(cosine_M) else 1.0,
            channel_error=(squared_MD.mean(0) / variance_D)[varies_D].median().item() if varies_D.any() else 0.0,
        )


def _ratio(part: Tensor, whole: Tensor) -> float:
    return (part / whole).item() if whole > 0 else 0.0
