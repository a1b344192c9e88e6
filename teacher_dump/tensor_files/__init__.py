"""What a dump keeps once of its teacher, in `weights/`. The table is `MAKERS`."""

from teacher_dump.tensor_files.table import MAKERS, tensor_files

__all__ = ["MAKERS", "tensor_files"]
