"""Tasks: rows become token ids, recorded positions and gold labels; predictions become metrics. `TASKS` is the one
table of them."""

from shared.text.tasks.base import TASKS, Task
from shared.text.tasks.table import task_named

__all__ = ["TASKS", "Task", "task_named"]
