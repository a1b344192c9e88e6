"""What an initialiser is: something that gives a model that was just made other weights to begin from."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from student_train.students.needs import Needs


class Initialiser(BaseModel, ABC):
    """One way for a student to begin; its fields are its parameters.

    A new one is a subclass with a `kind` of its own, in a file of its own, and an entry in
    `student_train.students.initialisers.table.INITIALISERS`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Which part of a student it changes; the key `embeddings` of a recipe names those of the word embeddings.
    part: ClassVar[Literal["embeddings", "layers"]] = "embeddings"
    # Whether it needs the teacher's word embeddings, so that a source without them is refused.
    needs_word_embeddings: ClassVar[bool] = False

    kind: str

    @abstractmethod
    def initialise(self, model: PreTrainedModel, needs: Needs) -> None:
        """Change the model's weights in place.

        Raises:
            RecipeError: where this model cannot begin so, naming the key of the recipe.
        """
