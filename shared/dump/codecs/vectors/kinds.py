"""The table of plain codecs of vectors, which commands name, and by which other codecs keep vectors of their own."""

from typing import Annotated

from pydantic import AfterValidator

from shared.dump.codecs.base import VectorCodec
from shared.dump.codecs.vectors.quantized import Float16Vectors, Int4Vectors, Int8Vectors
from shared.registry import Registry

VECTOR_KINDS: Registry[type[VectorCodec]] = Registry(
    "codec of vectors", {"float16": Float16Vectors, "int8": Int8Vectors, "int4": Int4Vectors}
)


def _known(kind: str) -> str:
    if kind not in VECTOR_KINDS:
        raise ValueError(f"{kind!r} is none of {', '.join(VECTOR_KINDS)}")
    return kind


# The name of one of them, as the field of another codec.
VectorKind = Annotated[str, AfterValidator(_known)]


def kept_by(kind: str, name: str, width: int, outlier_channels: tuple[int, ...]) -> VectorCodec:
    """The codec `kind` by which another codec keeps vectors of its own, with channels kept apart if there are any."""
    apart = {"outlier_channels": outlier_channels} if outlier_channels else {}
    return VECTOR_KINDS.named(kind).asked(name, width, **apart)
