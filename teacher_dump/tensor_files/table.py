"""The table of what makes tensor files. To keep another, add a file to this folder and a line here."""

from collections.abc import Callable

from shared.dump.weights.tensor_file import ATTENTION, EMBEDDINGS, IMPORTANCE, TEACHER, TensorFile
from shared.registry import Registry
from teacher_dump.engines.base import Engine
from teacher_dump.request import Request
from teacher_dump.tensor_files.attention import attention
from teacher_dump.tensor_files.embeddings import embeddings
from teacher_dump.tensor_files.importance import importance
from teacher_dump.tensor_files.weights import weights

# Each returns the file that a command asks for; None if it does not ask for it. One that is measured on rows of the
# corpus has no tensors yet.
Maker = Callable[[Request, Engine], TensorFile | None]

# By name in the table `TENSOR_FILES` of shared/dump/weights/tensor_file.py.
MAKERS: Registry[Maker] = Registry(
    "tensor file", {EMBEDDINGS: embeddings, TEACHER: weights, ATTENTION: attention, IMPORTANCE: importance}
)


def tensor_files(request: Request, engine: Engine) -> dict[str, TensorFile]:
    """The tensor files that a command asks for, by name.

    Raises:
        TeacherError: if the teacher cannot give one.
        UsageError: for options that exclude each other.
    """
    made = {name: make(request, engine) for name, make in MAKERS.items()}
    return {name: file for name, file in made.items() if file is not None}
