"""Tasks: how rows become token ids, recorded positions and gold labels, and predictions metrics. Table: `TASKS`."""

from shared.text.tasks.base import TASKS, Task
from shared.text.tasks.table import task_named

__all__ = ["TASKS", "Task", "task_named"]
