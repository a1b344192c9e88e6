"""The contract of an initialiser, which changes the initial weights of a model that was just built."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import BaseModel
from transformers import PreTrainedModel

from shared.numbers import STRICT
from student_train.students.needs import Needs


class Initialiser(BaseModel, ABC):
    """One way to initialise a student; its fields are its parameters.

    To add one, write a subclass with its own `kind` in a file of its own, and add an entry to
    `student_train.students.initialisers.table.INITIALISERS`.
    """

    model_config = STRICT

    # The part of a student that it changes; the key `embeddings` of a recipe names initialisers of "embeddings".
    part: ClassVar[Literal["embeddings", "layers", "weights"]] = "embeddings"
    # Whether it needs the teacher's word embeddings, so that a source without them is refused.
    needs_word_embeddings: ClassVar[bool] = False
    # Whether it needs the teacher's weights; the student then has the teacher's configuration in another shape.
    needs_teacher: ClassVar[bool] = False

    kind: str

    @property
    def needs_importance(self) -> bool:
        """Whether it needs the importance of the teacher's parts too."""
        return False

    def teacher_layers(self, teacher: int, student: int) -> Sequence[int]:
        """Return the layers, from 0, of a teacher with so many that the student's layers start from: by default spread
        evenly. Raises RecipeError if there are no such layers."""
        return uniform(teacher, student)

    @abstractmethod
    def initialise(self, model: PreTrainedModel, needs: Needs) -> None:
        """Change the model's weights in place. Parametrizations of torch that it registers are folded when the student
        is saved.

        Raises:
            RecipeError: if this model cannot be initialised in this way; the message names the key of the recipe.
        """


def uniform(teacher: int, student: int) -> tuple[int, ...]:
    """Return the evenly spread layers 0, n/m, 2n/m, ... of n layers for m, rounded down.

    >>> uniform(12, 4), uniform(6, 4)
    ((0, 3, 6, 9), (0, 1, 3, 4))
    """
    return tuple(number * teacher // student for number in range(student))
