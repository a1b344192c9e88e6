"""Kinds of students: how a recipe describes one, and how it is made."""

from student_train.students.bilstm import (
    BiLSTMConfig,
    BiLSTMForSequenceClassification,
    BiLSTMForTokenClassification,
    BiLSTMModel,
)
from student_train.students.build import build_student
from student_train.students.specs import (
    BiLSTMStudent,
    PretrainedStudent,
    StudentSpec,
    TransformerStudent,
)

__all__ = [
    "BiLSTMConfig",
    "BiLSTMForSequenceClassification",
    "BiLSTMForTokenClassification",
    "BiLSTMModel",
    "BiLSTMStudent",
    "PretrainedStudent",
    "StudentSpec",
    "TransformerStudent",
    "build_student",
]
