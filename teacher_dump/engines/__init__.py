"""Engines, which run a teacher: the contract (base.py), the table `ENGINES`, and a folder or a file for each engine."""

from teacher_dump.engines.table import ENGINES, describe_teacher

__all__ = ["ENGINES", "describe_teacher"]
