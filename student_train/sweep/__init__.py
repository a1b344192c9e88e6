"""Sweeps: many students from one dump, described as a grid of recipes, and compared."""

from student_train.sweep.plan import Run, Sweep, read_sweep
from student_train.sweep.sweep import Outcome, check_outcome, describe, run

__all__ = ["Outcome", "Run", "Sweep", "check_outcome", "describe", "read_sweep", "run"]
