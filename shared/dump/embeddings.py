"""The teacher's input word embeddings, which a dump can store once in `weights/` as a start for students.

Shapes: V rows of the matrix (the tokenizer may have fewer entries, and the vocabulary's head more), D width.
"""

from typing import ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from torch import Tensor

from shared.dump.codecs.columns import Width
from shared.dump.codecs.constants import Constants, fingerprint
from shared.errors import DumpError, TeacherError

NAME = "embeddings"


class WordEmbeddings(BaseModel):
    """The word embeddings [V, D] in float16; the manifest stores their shape and hash.

    The file's name is fixed, so that no manifest can refer to another file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str] = NAME
    constants_file: ClassVar[str] = f"{NAME}.safetensors"

    rows: int = Field(ge=1)
    width: Width
    constants_sha256: str

    _constants: Constants = PrivateAttr(default_factory=Constants)

    @classmethod
    def of(cls, weight_VD: Tensor) -> Self:
        """Return the word embeddings of a teacher's matrix.

        Raises:
            TeacherError: for a value that is NaN or too large for float16.
        """
        half_VD = weight_VD.detach().to("cpu", torch.float16)
        if not half_VD.isfinite().all():
            row = int((~half_VD.isfinite().all(-1)).nonzero()[0])
            raise TeacherError(
                f"--embeddings: the teacher's word embedding of token {row} is NaN, or too large for float16; leave "
                "the option out."
            )
        tensors = {NAME: half_VD}
        rows, width = half_VD.shape
        return cls(rows=rows, width=width, constants_sha256=fingerprint(tensors)).with_constants(tensors)

    @property
    def bytes(self) -> int:
        """Bytes of the file, without its header."""
        return self.rows * self.width * torch.float16.itemsize

    def describe(self) -> str:
        """Describe them in a few words, for messages and reports."""
        return f"word embeddings ({self.rows:,} rows, {self.width} wide, float16)"

    def constants(self) -> dict[str, Tensor]:
        """Return the tensors of the file. Raises DumpError if they have not been read."""
        return self._constants.known(f"the word embeddings in weights/{self.constants_file} have not been read.")

    def with_constants(self, tensors: dict[str, Tensor]) -> Self:
        """Return the same with the tensors of the file. Raises DumpError if their hash differs."""
        if fingerprint(tensors) != self.constants_sha256:
            raise DumpError(
                "not the teacher's word embeddings that the manifest describes (their SHA-256 differs); restore the "
                "file or dump again."
            )
        copy = self.model_copy()
        copy._constants = Constants(tensors)
        return copy
