"""The contract of a kind of student: the keys of a recipe's [student] section, and the model built from them."""

from abc import ABC, abstractmethod

from pydantic import BaseModel, Field
from transformers import PreTrainedModel

from shared.dump.facts import PoolingMode
from shared.numbers import STRICT
from student_train.students.initialisers import Initialiser
from student_train.students.needs import Needs


class Student(BaseModel, ABC):
    """One kind of student; its fields are the keys of a [student] section.

    To add a kind, write a subclass with its own `kind` in a file of its own, and add an entry to
    `student_train.students.table.STUDENTS`. No other code asks which kind a student is.
    """

    model_config = STRICT

    kind: str
    pooling: PoolingMode | None = Field(default=None, description="of its embeddings; by default the teacher's")
    normalize: bool | None = Field(default=None, description="its embeddings; by default as the teacher's are")
    crf: bool = Field(default=False, description="learn scores of transitions between tags (token-classification)")

    @property
    def checkpoint(self) -> str | None:
        """The folder or hub id from which the student is read, with its tokenizer; None for a fresh student.

        A fresh student uses the tokenizer of the training rows.
        """
        return None

    @property
    def fewest_occurrences(self) -> int | None:
        """The fewest occurrences of a token that gets its own embedding; None if every token gets one."""
        return None

    @property
    def initialisers(self) -> tuple[Initialiser, ...]:
        """The initialisers that change the built model, in order."""
        return ()

    @abstractmethod
    def build(self, needs: Needs) -> PreTrainedModel:
        """Build the model in float32; new weights are drawn from torch's global generator.

        Raises:
            RecipeError: if such a model does not fit the needs.
        """

    def known_ids(self, model: PreTrainedModel) -> int:
        """The number of token ids that the model can look up; by default the number of its embeddings."""
        return int(model.get_input_embeddings().weight.shape[0])
