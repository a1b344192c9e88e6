"""The table of codecs: the valid values of a signal's `codec`. A new codec is a file in this folder and a line here."""

from typing import Annotated

from shared.dump.codecs.base import Codec
from shared.dump.codecs.dense import Dense
from shared.dump.codecs.exact import Exact
from shared.dump.codecs.mixtures import Mixtures
from shared.dump.codecs.sparse import Sparse
from shared.dump.codecs.top_k_float16 import TopKFloat16
from shared.dump.codecs.vectors.low_rank import LowRankVectors
from shared.dump.codecs.vectors.quantized import Float16Vectors, Int4Vectors, Int8Vectors
from shared.registry import Registry, tagged

CODECS: Registry[type[Codec]] = Registry(
    "codec",
    {
        "dense": Dense,
        "sparse": Sparse,
        "exact": Exact,
        "top-k": TopKFloat16,
        "float16": Float16Vectors,
        "int8": Int8Vectors,
        "int4": Int4Vectors,
        "low-rank": LowRankVectors,
        "mixtures": Mixtures,
    },
)

AnyCodec = Annotated[Codec, tagged(CODECS, "codec")]
