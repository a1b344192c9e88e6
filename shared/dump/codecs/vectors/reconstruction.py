"""What a codec of vectors loses, in a few numbers.

Shapes: M vectors, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Reconstruction(NamedTuple):
    """What is lost of some vectors.

    Attributes:
        relative_error: squared error over squared length, of all vectors together.
        cosine: between a vector and what it decodes to, the mean; vectors of length 0 are left out.
        channel_error: squared error over variance of the median channel. The other two are blind where a few channels
            are far larger than the others: then a codec that keeps these alone has a cosine near 1.
    """

    relative_error: float
    cosine: float
    channel_error: float

    @classmethod
    def of(cls, exact_MD: Tensor, found_MD: Tensor) -> "Reconstruction":
        """Of what was to be kept, and what came back; in float64."""
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
