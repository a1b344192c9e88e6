"""The contract of an initialiser, which changes the initial weights of a model that was just built."""

from abc import ABC, abstractmethod
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
    part: ClassVar[Literal["embeddings", "layers"]] = "embeddings"
    # Whether it needs the teacher's word embeddings, so that a source without them is refused.
    needs_word_embeddings: ClassVar[bool] = False

    kind: str

    @abstractmethod
    def initialise(self, model: PreTrainedModel, needs: Needs) -> None:
        """Change the model's weights in place.

        Raises:
            RecipeError: if this model cannot be initialised in this way; the message names the key of the recipe.
        """
