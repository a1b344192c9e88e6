"""The options of what a dump keeps of its teacher once, beside what it keeps of each row."""

from dataclasses import dataclass
from typing import Annotated

import typer
from annotated_doc import Doc
from annotated_types import Ge, Le

from shared.options import MOST


@dataclass(frozen=True)
class Kept:
    """What is kept of the teacher itself, in `weights/`, for students that begin with parts of it."""

    embeddings: Annotated[
        bool,
        Doc(
            "Also keep the teacher's input word embeddings, once, for students initialised from them (2 bytes per "
            "number)."
        ),
    ] = False
    teacher_weights: Annotated[
        str,
        Doc(
            "Also keep the teacher's weights, once, for students initialised from them: none, all, or layers such as "
            "2,4,6 (with everything outside of the layers: embeddings and head). 1 is the first layer."
        ),
    ] = "none"
    teacher_weights_dtype: Annotated[
        str,
        Doc("How the teacher's weights are kept: auto, fp32, bf16 or fp16. auto: as the teacher is run (--dtype)."),
    ] = "auto"
    importance: Annotated[
        int | None,
        Ge(1),
        Le(MOST),
        typer.Option(metavar="ROWS"),
        Doc(
            "Also keep, once, how much the loss on this many first rows depends on each of the teacher's attention "
            "heads, feed-forward neurons and residual dimensions, for students that are cut out of it. The loss is the "
            "task's own and needs gold labels, except for encoder, where it is a random projection of the outputs."
        ),
    ] = None
