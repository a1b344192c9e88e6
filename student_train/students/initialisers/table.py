"""The tables of initialisers. To add one, add a file to this folder and a line here."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from shared.registry import Registry, tagged
from student_train.students.initialisers.base import Initialiser
from student_train.students.initialisers.extract import Extract
from student_train.students.initialisers.factorise import Factorise
from student_train.students.initialisers.keep_layers import KeepLayers
from student_train.students.initialisers.layers import Layers
from student_train.students.initialisers.random import Random
from student_train.students.initialisers.squeeze import Squeeze
from student_train.students.initialisers.svd import SVD

INITIALISERS: Registry[type[Initialiser]] = Registry(
    "initialiser", {"random": Random, "svd": SVD, "keep-layers": KeepLayers}
)

# The valid values of `start.kind`: what all weights of a fresh transformer start from.
STARTS: Registry[type[Initialiser]] = Registry(
    "start", {"random": Random, "layers": Layers, "extract": Extract, "factorise": Factorise, "squeeze": Squeeze}
)


def _of_embeddings(kind: Any) -> Any:
    valid = [repr(name) for name, initialiser in INITIALISERS.items() if initialiser.part == "embeddings"]
    if repr(kind) not in valid:
        raise ValueError(f"Input should be {', '.join(valid[:-1])} or {valid[-1]}")
    return kind


# The key `embeddings` of a recipe: the name of the initialiser of a fresh student's word embeddings.
Embeddings = Annotated[str, BeforeValidator(_of_embeddings)]

# The key `start` of a recipe: an initialiser of all weights, with its own keys.
Start = Annotated[Initialiser, tagged(STARTS, "kind")]
