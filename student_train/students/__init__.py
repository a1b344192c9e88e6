"""Kinds of students: their keys in a recipe, and how their models are built. The table is `STUDENTS`."""

from student_train.students.base import Student
from student_train.students.bilstm import (
    BiLSTMConfig,
    BiLSTMForSequenceClassification,
    BiLSTMForTokenClassification,
    BiLSTMModel,
)
from student_train.students.bilstm_student import BiLSTMStudent
from student_train.students.build import build_student
from student_train.students.initialisers import INITIALISERS, STARTS, Initialiser
from student_train.students.initialisers.from_teacher import fold
from student_train.students.needs import Needs
from student_train.students.pretrained import PretrainedStudent
from student_train.students.table import STUDENTS, StudentSpec
from student_train.students.transformer import TransformerStudent

__all__ = [
    "INITIALISERS",
    "STARTS",
    "STUDENTS",
    "BiLSTMConfig",
    "BiLSTMForSequenceClassification",
    "BiLSTMForTokenClassification",
    "BiLSTMModel",
    "BiLSTMStudent",
    "Initialiser",
    "Needs",
    "PretrainedStudent",
    "Student",
    "StudentSpec",
    "TransformerStudent",
    "build_student",
    "fold",
]
