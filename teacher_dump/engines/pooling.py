"""How a teacher makes the embeddings of rows: as the request says, or the files beside its model."""

from typing import cast, get_args

from shared.dump.facts import Pooling, PoolingMode
from shared.errors import UsageError
from shared.models.sentence_folder import SentenceFolder
from shared.text.tasks import Task
from teacher_dump.request import Request

AUTO, NONE = "auto", "none"
_NORMALIZE = (AUTO, "yes", "no")


def follows_folder(request: Request, task: Task) -> bool:
    """Whether the files beside the model decide how embeddings are made.

    Raises:
        UsageError: for an unknown value of the options for embeddings, or if the task has none.
    """
    modes = (AUTO, NONE, *get_args(PoolingMode))
    if request.pooling not in (None, *modes):
        raise UsageError(f"--pooling {request.pooling!r:.80}: use {', '.join(modes)}.")
    if request.normalize not in _NORMALIZE:
        raise UsageError(f"--normalize {request.normalize!r:.80}: use {', '.join(_NORMALIZE)}.")
    if not task.has_embeddings and request.pooling not in (None, NONE):
        raise UsageError(f"--pooling {request.pooling}: the task {task.name} has no embeddings of rows; leave it out.")
    if not task.has_embeddings or request.pooling == NONE:
        for option in ("normalize", "pooled_codec"):
            if getattr(request, option) != getattr(Request, option):
                raise UsageError(f"--{option.replace('_', '-')} is for embeddings of rows, but none are recorded.")
    return task.has_embeddings and request.pooling in (None, AUTO)


def asked_pooling(request: Request, task: Task, folder: SentenceFolder | None) -> Pooling | None:
    """The pooling of the requested embeddings; None if none are recorded.

    `folder` is what the files beside the model say, if they decide.
    """
    if not task.has_embeddings or request.pooling == NONE:
        return None
    said = folder.pooling if folder is not None else Pooling()
    mode = said.mode if request.pooling in (None, AUTO) else cast(PoolingMode, request.pooling)
    normalized = said.normalized if request.normalize == AUTO else request.normalize == "yes"
    return Pooling(mode=mode, normalized=normalized)
