"""Initialise a student of the teacher's width with some of its layers, whose weights a dump has."""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import Field, field_validator
from transformers import PreTrainedModel

from shared.errors import RecipeError
from shared.numbers import Count
from student_train.students.initialisers.base import Initialiser, uniform
from student_train.students.initialisers.from_teacher import begin_whole
from student_train.students.needs import Needs


class Layers(Initialiser):
    """Whole layers of the teacher, with its embeddings and its head: 1, 1 + n/m, 1 + 2n/m, ... of n for a student of m
    layers, or those with the `numbers`, from 1.

    Sanh et al. 2019, "DistilBERT" (arXiv 1910.01108, section 3), start a student from every second layer.
    """

    part = "weights"
    needs_teacher: ClassVar[bool] = True

    kind: Literal["layers"] = "layers"
    numbers: tuple[Count, ...] | None = Field(default=None, min_length=1, description="by default spread evenly")

    @field_validator("numbers")
    @classmethod
    def _ascending(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and any(first >= second for first, second in pairwise(value)):
            raise ValueError("layer numbers must be strictly increasing, from the bottom up")
        return value

    def teacher_layers(self, teacher: int, student: int) -> Sequence[int]:
        if self.numbers is None:
            return uniform(teacher, student)
        if self.numbers[-1] > teacher:
            raise RecipeError(
                f"student.start.numbers = {list(self.numbers)}: the teacher has {teacher} layers; choose among these."
            )
        if len(self.numbers) != student:
            raise RecipeError(
                f"student.start.numbers = {list(self.numbers)}: these are {len(self.numbers)} layers, and "
                f"student.layers is {student}; give as many numbers."
            )
        return [number - 1 for number in self.numbers]

    def initialise(self, model: PreTrainedModel, needs: Needs) -> None:
        begin_whole(model, needs, self)
