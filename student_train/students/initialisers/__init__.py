"""Initialisers, which set the initial weights of a student. The table is `INITIALISERS`."""

from student_train.students.initialisers.base import Initialiser
from student_train.students.initialisers.keep_layers import KeepLayers
from student_train.students.initialisers.table import INITIALISERS, Embeddings

__all__ = ["INITIALISERS", "Embeddings", "Initialiser", "KeepLayers"]
