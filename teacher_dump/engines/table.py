"""The table of engines: what can run a teacher.

An entry takes what is asked for and the task, and gives the teacher's description, which loads it. Adding an engine is
one file or folder here, and one line; a program may also put its own into `ENGINES`, and name it in `Request.engine`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shared.registry import Registry

if TYPE_CHECKING:  # an engine's libraries are loaded when it is used
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
    """The teacher that is asked for, described by its engine.

    Raises:
        UsageError: for an engine that there is not, or a tokenizer that cannot serve the task.
        TeacherError: where there is no such teacher, or it lacks what the task needs.
    """
    own = "transformers" if isinstance(request.teacher, str) else request.teacher.engine
    return ENGINES.named(request.engine or own)(request, task)
