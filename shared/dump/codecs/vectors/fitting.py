"""Vector codecs fitted to a sample.

A few thousand positions are a good sample. With fewer positions than the `rank` of a low-rank codec, part of its basis
is arbitrary. The same sample gives the same codec on the same machine.

Shapes: M positions of the sample, D width.
"""

from torch import Tensor

from shared.dump.codecs.base import VectorCodec, refuse_broken
from shared.dump.codecs.vectors.kinds import VECTOR_KINDS
from shared.dump.codecs.vectors.low_rank import LowRankVectors
from shared.dump.codecs.vectors.reconstruction import Reconstruction


def fit_vector_codec(kind: str, name: str, sample_MD: Tensor, rank: int | None = None) -> VectorCodec:
    """Return the codec `kind` ("float16", "int8", "int4") fitted to a sample; with `rank`, in a PCA basis of that rank.

    Raises:
        NotFiniteError: for NaN or infinity in the sample.
        ValueError: for an empty sample, or a rank that is not in 1 to the width.
    """
    positions, width = sample_MD.shape
    if positions == 0:
        raise ValueError(f"the sample for {name!r} has no vectors")
    if rank is not None and not 1 <= rank <= width:
        raise ValueError(f"rank {rank}: vectors of width {width} have ranks from 1 to {width}")
    refuse_broken(~sample_MD.isfinite().all(-1))
    if rank is None:
        return VECTOR_KINDS.named(kind).asked(name, width).fitted(sample_MD)
    return LowRankVectors.asked(name, width, rank=rank, coefficients=kind).fitted(sample_MD)


def reconstruction(codec: VectorCodec, sample_MD: Tensor) -> Reconstruction:
    """Measure the reconstruction error of `codec` on a sample of vectors."""
    return Reconstruction.of(sample_MD, codec.decode(codec.encode(sample_MD)))
