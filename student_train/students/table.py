"""The table of kinds of students, the valid values of `kind` in the [student] section of a recipe."""

from typing import Annotated

from shared.registry import Registry, tagged
from student_train.students.base import Student
from student_train.students.bilstm_student import BiLSTMStudent
from student_train.students.pretrained import PretrainedStudent
from student_train.students.transformer import TransformerStudent

STUDENTS: Registry[type[Student]] = Registry(
    "kind of student",
    {"pretrained": PretrainedStudent, "transformer": TransformerStudent, "bilstm": BiLSTMStudent},
)

StudentSpec = Annotated[Student, tagged(STUDENTS, "kind")]
