"""Codecs encode a signal's tensors as plain Parquet columns and decode them. The table of codecs is CODECS."""

from shared.dump.codecs.base import Codec, DistributionCodec, NotFiniteError, VectorCodec
from shared.dump.codecs.columns import Column, counts_of
from shared.dump.codecs.dense import Dense
from shared.dump.codecs.exact import Exact, LogitStep
from shared.dump.codecs.mixtures import DecodedMixtures, Mixtures
from shared.dump.codecs.selection.rules import RULES, Draws, Selection, Threshold, TopK, TopP
from shared.dump.codecs.selection.uniforms import position_keys
from shared.dump.codecs.sparse import Sparse
from shared.dump.codecs.table import CODECS, AnyCodec
from shared.dump.codecs.targets import DenseTargets, SparseTargets, Targets
from shared.dump.codecs.top_k_float16 import TopKFloat16
from shared.dump.codecs.vectors.kinds import VECTOR_KINDS
from shared.dump.codecs.vectors.low_rank import LowRankVectors
from shared.dump.codecs.vectors.quantized import Float16Vectors, Int4Vectors, Int8Vectors

__all__ = [
    "CODECS",
    "VECTOR_KINDS",
    "RULES",
    "AnyCodec",
    "Codec",
    "Column",
    "DecodedMixtures",
    "Dense",
    "DenseTargets",
    "DistributionCodec",
    "Draws",
    "Exact",
    "Float16Vectors",
    "Int4Vectors",
    "Int8Vectors",
    "LogitStep",
    "LowRankVectors",
    "Mixtures",
    "NotFiniteError",
    "Selection",
    "Sparse",
    "SparseTargets",
    "Targets",
    "Threshold",
    "TopK",
    "TopKFloat16",
    "TopP",
    "VectorCodec",
    "counts_of",
    "position_keys",
]
