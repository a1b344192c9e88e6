"""`--mixup`: whether a teacher's rows can be mixed, and the signal that is recorded then."""

from shared.dump.codecs import Mixtures
from shared.dump.layouts import Layout
from shared.dump.signals import MIXTURES, SITES, Signal
from shared.errors import TeacherError, UsageError
from shared.text.tasks import TASKS
from teacher_dump.engines.base import Engine, TeacherDescription
from teacher_dump.request import DEFAULT_ALPHA, Request


def mixtures(request: Request, layout: Layout, engine: Engine, teacher: TeacherDescription) -> tuple[Signal, ...]:
    """The signal of mixtures of rows, or none if --mixup is not given.

    Raises:
        UsageError: for a task whose logits are not those of a whole row, or options that do not fit.
        TeacherError: for a teacher that cannot read embeddings in place of token ids.
    """
    if any(SITES.named(asked.site).holds == "mixtures" for asked in request.signals):
        raise UsageError(f"signal {MIXTURES!r}: request it by --mixup DRAWS (in Python mixup=DRAWS).")
    if request.mixup is None:
        if request.mixup_alpha is not None:
            raise UsageError("--mixup-alpha says how --mixup draws lambda; give --mixup DRAWS too.")
        return ()
    names = teacher.label_names
    if not layout.by_row or not layout.has_distributions or names is None:
        able = ", ".join(task.name for task in TASKS.values() if task.layout(task.check_positions(None)).by_row)
        raise UsageError(
            f"--mixup mixes whole rows, position by position, but the logits of {request.task} are not those of a row; "
            f"use it with {able}, or leave it out."
        )
    pad = teacher.tokenizer.pad_token_id
    if pad != engine.pad_token_id:
        raise TeacherError(
            f"--mixup fills rows up with the padding token, but that of the tokenizer ({pad}) is not that of the model "
            f"({engine.pad_token_id}); give both the same."
        )
    engine.check_mixing()
    alpha = DEFAULT_ALPHA if request.mixup_alpha is None else request.mixup_alpha
    codec = Mixtures(name=MIXTURES, draws=request.mixup, alpha=alpha, classes=len(names))
    return (Signal.of(MIXTURES, None, codec),)
