"""How long rows are and what of them is recorded: options of `dump` and `distill eval`, and keys of recipes."""

from dataclasses import dataclass
from typing import Annotated

from annotated_doc import Doc
from annotated_types import Ge

DEFAULT_STRIDE = 128


@dataclass(frozen=True)
class Positions:
    """Where in a row distributions and gold labels are, and how a long context becomes several rows."""

    positions: Annotated[
        str | None,
        Doc(
            "Where in a row distributions and gold labels are. causal-lm: all (default) or completion (of chats: where "
            "the assistant's next token follows); masked-lm: masked (default) or all; token-classification: "
            "first-subtoken (default) or all."
        ),
    ] = None
    stride: Annotated[
        int,
        Ge(0),
        Doc("Tokens by which the windows of a long context overlap (question-answering; at most half a window)."),
    ] = DEFAULT_STRIDE


@dataclass(frozen=True)
class Lengths:
    """How much of each row is read, and how many rows."""

    max_length: Annotated[int, Ge(1), Doc("Rows are cut to this many tokens.")] = 512
    limit: Annotated[int | None, Ge(1), Doc("Only so many rows of the files, from the first.")] = None
