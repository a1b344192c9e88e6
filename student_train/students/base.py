"""What a kind of student is: the keys of a recipe's [student] section, and a model that is made from them."""

from abc import ABC, abstractmethod

from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from student_train.students.initialisers import Initialiser
from student_train.students.needs import Needs


class Student(BaseModel, ABC):
    """One kind of student; its fields are the keys of a [student] section.

    A new kind is a subclass with a `kind` of its own, in a file of its own, and an entry in
    `student_train.students.table.STUDENTS`. Nobody else asks which kind a student is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str

    @property
    def checkpoint(self) -> str | None:
        """The folder or hub id that it is read from, with a tokenizer beside it; None for a fresh student, which takes
        the tokenizer of the rows that it learns from."""
        return None

    @property
    def fewest_occurrences(self) -> int | None:
        """How often a token must occur in the rows to get an embedding of its own; None where every token gets one."""
        return None

    @property
    def initialisers(self) -> tuple[Initialiser, ...]:
        """What changes the model after it was made, one after the other."""
        return ()

    @abstractmethod
    def build(self, needs: Needs) -> PreTrainedModel:
        """The model, in float32, its new weights drawn from torch's global generator.

        Raises:
            RecipeError: where no such model fits what is needed.
        """

    def known_ids(self, model: PreTrainedModel) -> int:
        """How many token ids the model can look up: as many as it has embeddings, unless the kind says otherwise."""
        return int(model.get_input_embeddings().weight.shape[0])
