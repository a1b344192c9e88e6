"""What initialisers share that take the teacher's weights from a dump."""

from student_train.students.initialisers.from_teacher.beginnings import begin_extracted, begin_whole
from student_train.students.initialisers.from_teacher.configuration import Wanted, configuration
from student_train.students.initialisers.from_teacher.folding import fold
from student_train.students.initialisers.from_teacher.matrices import matrices_of
from student_train.students.initialisers.from_teacher.slicing import teacher_matrices

__all__ = [
    "Wanted",
    "begin_extracted",
    "begin_whole",
    "configuration",
    "fold",
    "matrices_of",
    "teacher_matrices",
]
