"""`dump --embeddings`: the teacher's input word embeddings.

Shapes: V rows of the matrix (the tokenizer may have fewer entries, and the vocabulary's head more), D width.
"""

import torch

from shared.dump.weights.tensor_file import EMBEDDINGS, TensorFile
from shared.errors import TeacherError
from teacher_dump.engines.base import Engine
from teacher_dump.request import Request


def embeddings(request: Request, engine: Engine) -> TensorFile | None:
    """The file of the word embeddings [V, D] in float16.

    Raises:
        TeacherError: if the teacher does not give them, or for a value that is NaN or too large for float16.
    """
    if not request.embeddings:
        return None
    half_VD = engine.word_embeddings().detach().to("cpu", torch.float16)
    if not half_VD.isfinite().all():
        row = int((~half_VD.isfinite().all(-1)).nonzero()[0])
        raise TeacherError(
            f"--embeddings: the teacher's word embedding of token {row} is NaN, or too large for float16; leave "
            "the option out."
        )
    rows, width = half_VD.shape
    return TensorFile.of({EMBEDDINGS: half_VD}, rows=rows, width=width, dtype="fp16")
