"""Making a codec of vectors for a sample of them.

A few thousand positions are a good sample; fewer than a low rank's `rank` leave part of its basis arbitrary. The same
sample gives the same codec on the same machine.

Shapes: M positions of the sample, D width.
"""

from torch import Tensor

from shared.dump.codecs.base import VectorCodec, refuse_broken
from shared.dump.codecs.vectors.kinds import VECTOR_KINDS
from shared.dump.codecs.vectors.low_rank import LowRankVectors
from shared.dump.codecs.vectors.reconstruction import Reconstruction


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
        return VECTOR_KINDS.named(kind).asked(name, width).fitted(sample_MD)
    return LowRankVectors.asked(name, width, rank=rank, coefficients=kind).fitted(sample_MD)


def reconstruction(codec: VectorCodec, sample_MD: Tensor) -> Reconstruction:
    """What `codec` loses of a sample of vectors."""
    return Reconstruction.of(sample_MD, codec.decode(codec.encode(sample_MD)))
