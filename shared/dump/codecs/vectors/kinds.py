"""The table of plain vector codecs: those that commands offer, and with which other codecs store their own vectors."""

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
        raise ValueError(f"{kind!r} is not one of {', '.join(VECTOR_KINDS)}")
    return kind


# A name of the table, as a field of another codec.
VectorKind = Annotated[str, AfterValidator(_known)]


def kept_by(kind: str, name: str, width: int, outlier_channels: tuple[int, ...]) -> VectorCodec:
    """Return the codec `kind` for vectors that another codec stores, with its outlier channels if there are any."""
    apart = {"outlier_channels": outlier_channels} if outlier_channels else {}
    return VECTOR_KINDS.named(kind).asked(name, width, **apart)
