"""Random weights, as they were drawn when the model was built."""

from typing import Literal

from transformers import PreTrainedModel

from student_train.students.initialisers.base import Initialiser
from student_train.students.needs import Needs


class Random(Initialiser):
    """Leaves the model unchanged."""

    kind: Literal["random"] = "random"

    def initialise(self, model: PreTrainedModel, needs: Needs) -> None:
        pass
