"""The table of initialisers. To add one, add a file to this folder and a line here."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from shared.registry import Registry
from student_train.students.initialisers.base import Initialiser
from student_train.students.initialisers.keep_layers import KeepLayers
from student_train.students.initialisers.random import Random
from student_train.students.initialisers.svd import SVD

INITIALISERS: Registry[type[Initialiser]] = Registry(
    "initialiser", {"random": Random, "svd": SVD, "keep-layers": KeepLayers}
)


def _of_embeddings(kind: Any) -> Any:
    valid = [repr(name) for name, initialiser in INITIALISERS.items() if initialiser.part == "embeddings"]
    if repr(kind) not in valid:
        raise ValueError(f"Input should be {', '.join(valid[:-1])} or {valid[-1]}")
    return kind


# The key `embeddings` of a recipe: the name of the initialiser of a fresh student's word embeddings.
Embeddings = Annotated[str, BeforeValidator(_of_embeddings)]
