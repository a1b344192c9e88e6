"""What runs a teacher: the contract (base.py), the table `ENGINES`, and one folder or file an engine."""

from teacher_dump.engines.table import ENGINES, describe_teacher

__all__ = ["ENGINES", "describe_teacher"]
