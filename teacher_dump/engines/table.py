"""The table of engines.

An entry is a function that takes the request and the task and returns the teacher's description, which loads the
teacher. To add an engine, add a file or folder here and a line to the table. A program may also put its own engine into
`ENGINES`, and name it in `Request.engine`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shared.registry import Registry

if TYPE_CHECKING:  # an engine's libraries are loaded only when it is used
    from shared.text.tasks import Task
    from teacher_dump.engines.base import TeacherDescription
    from teacher_dump.request import Request


def _transformers(request: Request, task: Task) -> TeacherDescription:
    from teacher_dump.engines.transformers.loading import describe

    return describe(request, task)


def _callable(request: Request, task: Task) -> TeacherDescription:
    from teacher_dump.engines.callable import describe

    return describe(request, task)


ENGINES: Registry[Callable[[Request, Task], TeacherDescription]] = Registry(
    "engine", {"transformers": _transformers, "callable": _callable}
)


def describe_teacher(request: Request, task: Task) -> TeacherDescription:
    """The description of the requested teacher, from its engine.

    Raises:
        UsageError: for an unknown engine, or a tokenizer that does not fit the task.
        TeacherError: if the teacher does not exist, or lacks something that the task needs.
    """
    own = "transformers" if isinstance(request.teacher, str) else request.teacher.engine
    return ENGINES.named(request.engine or own)(request, task)
