"""Initialisers, which set the initial weights of a student. The tables are `INITIALISERS` and `STARTS`."""

from student_train.students.initialisers.base import Initialiser
from student_train.students.initialisers.keep_layers import KeepLayers
from student_train.students.initialisers.random import Random
from student_train.students.initialisers.table import INITIALISERS, STARTS, Embeddings, Start

__all__ = ["INITIALISERS", "STARTS", "Embeddings", "Initialiser", "KeepLayers", "Random", "Start"]
