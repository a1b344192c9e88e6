"""Fitting a codec of vectors to a sample of them: outlier channels and the PCA basis; and what the codec loses of it.

A few thousand positions are a good sample; fewer than a low rank's `rank` leave part of its basis arbitrary. The same
sample gives the same codec on the same machine.

Shapes: M positions of the sample, D width, R rank.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from shared.dump.codecs.base import VectorCodec, refuse_broken
from shared.dump.codecs.constants import fingerprint
from shared.dump.codecs.vectors.low_rank import LowRankVectors
from shared.dump.codecs.vectors.quantized import KINDS

# At most one channel in so many is kept apart.
OUTLIERS_IN = 16
SLICE_VECTORS = 1 << 16


class Reconstruction(NamedTuple):
    """What a codec loses of a sample.

    Attributes:
        relative_error: squared error over squared length, of all vectors together.
        cosine: between a vector and what it decodes to, the mean; vectors of length 0 are left out.
        channel_error: squared error over variance of the median channel. The other two are blind where a few channels
            are far larger than the others: then a codec that keeps these alone has a cosine near 1.
    """

    relative_error: float
    cosine: float
    channel_error: float


def fit_vector_codec(kind: str, name: str, sample_MD: Tensor, rank: int | None = None) -> VectorCodec:
    """The codec `kind` ("float16", "int8", "int4") fitted to a sample; with `rank`, in a PCA basis of that rank.

    Raises:
        NotFiniteError: for NaN or infinity in the sample.
        ValueError: for an empty sample, or a rank outside 1 to the width.
    """
    positions, width = sample_MD.shape
    if positions == 0:
        raise ValueError(f"no vectors to fit {name!r} to")
    if rank is not None and not 1 <= rank <= width:
        raise ValueError(f"rank {rank}: vectors {width} wide can have ranks 1 to {width}")
    refuse_broken(~sample_MD.isfinite().all(-1))
    if rank is None:
        return _fit_outliers(kind, name, sample_MD.float())
    mean_D, basis_RD = principal_components(sample_MD, rank)
    constants = {"mean": mean_D, "basis": basis_RD}
    of_coefficients = _fit_outliers(kind, name, (sample_MD.float() - mean_D) @ basis_RD.T)
    return LowRankVectors.model_validate(
        {
            "name": name,
            "width": width,
            "rank": rank,
            "coefficients": kind,
            "outlier_coefficients": getattr(of_coefficients, "outlier_channels", ()),
            "constants_sha256": fingerprint(constants),
        }
    ).with_constants(constants)


def reconstruction(codec: VectorCodec, sample_MD: Tensor) -> Reconstruction:
    """What `codec` loses of a sample of vectors, in float64."""
    exact_MD = sample_MD.double()
    found_MD = codec.decode(codec.encode(sample_MD)).double()
    squared_MD = (found_MD - exact_MD).square()
    variance_D = exact_MD.var(0, correction=0)
    varies_D = variance_D > 0
    has_length_M = exact_MD.norm(dim=-1) > 0
    cosine_M = torch.nn.functional.cosine_similarity(found_MD, exact_MD, dim=-1)[has_length_M]
    return Reconstruction(
        relative_error=_ratio(squared_MD.sum(), exact_MD.square().sum()),
        cosine=cosine_M.mean().item() if len(cosine_M) else 1.0,
        channel_error=(squared_MD.mean(0) / variance_D)[varies_D].median().item() if varies_D.any() else 0.0,
    )


def _fit_outliers(kind: str, name: str, sample_MD: Tensor) -> VectorCodec:
    """The codec with as many outlier channels (none, 1, 2, 3, 4, 6, 8, 12, ...) as pay.

    Any codec halves its error (a quarter of the squared one) for one more bit a channel. So a setting costs its bytes
    and the bytes that would bring its error down to that of the others.
    """
    width = sample_MD.shape[-1]
    facts = {"name": name, "width": width}
    if "outlier_channels" not in KINDS[kind].model_fields:
        return KINDS[kind].model_validate(facts)

    def cost(codec: VectorCodec) -> float:
        squared_error = (codec.decode(codec.encode(sample_MD)) - sample_MD).double().square().mean().item()
        stored = sum(column.bytes_per_position for column in codec.columns)
        return stored + width / 8 * math.log2(squared_error) / 2 if squared_error else -math.inf

    largest_first = sample_MD.abs().amax(0).argsort(descending=True, stable=True).tolist()
    most = width // OUTLIERS_IN
    steps = {0, 1, *(step * 2**power for step in (2, 3) for power in range(most.bit_length()))}
    counts = sorted(step for step in steps if step <= most)
    return min(
        (KINDS[kind].model_validate({**facts, "outlier_channels": sorted(largest_first[:count])}) for count in counts),
        key=cost,
    )


def principal_components(sample_MD: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(mean [D], the `rank` directions of largest variance as orthonormal rows [R, D]), float32."""
    mean_D = sample_MD.mean(0, dtype=torch.float64)
    # A slice at a time, because a teacher's embeddings may be gigabytes.
    centred = (slice_MD.double() - mean_D for slice_MD in sample_MD.split(SLICE_VECTORS))
    _, directions_DD = torch.linalg.eigh(sum(slice_MD.T @ slice_MD for slice_MD in centred))
    basis_RD = directions_DD.flip(-1).T[:rank]
    # An eigenvector's sign is arbitrary: its largest component is made positive, so that the basis is reproducible.
    largest_R1 = basis_RD.gather(-1, basis_RD.abs().argmax(-1, keepdim=True))
    return mean_D.float(), (basis_RD * largest_R1.sign()).float().contiguous()


def _ratio(part: Tensor, whole: Tensor) -> float:
    return (part / whole).item() if whole > 0 else 0.0
