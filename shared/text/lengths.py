"""Lengths and recorded positions of rows: options of `dump` and `distill eval`, and keys of recipes."""

from dataclasses import dataclass
from typing import Annotated

from annotated_doc import Doc
from annotated_types import Ge, Le

from shared.options import MOST

DEFAULT_STRIDE = 128


@dataclass(frozen=True)
class Positions:
    """The positions of distributions and gold labels in a row, and the overlap of windows of a long context."""

    positions: Annotated[
        str | None,
        Doc(
            "Where in a row distributions and gold labels are. causal-lm: all (default) or completion (in chats: where "
            "the next token is the assistant's); masked-lm: masked (default) or all; token-classification: "
            "first-subtoken (default) or all."
        ),
    ] = None
    stride: Annotated[
        int,
        Ge(0),
        Le(MOST),
        Doc("Tokens by which the windows of a long context overlap (question-answering; at most half a window)."),
    ] = DEFAULT_STRIDE


@dataclass(frozen=True)
class Lengths:
    """The largest number of tokens of a row, and of rows."""

    max_length: Annotated[int, Ge(1), Le(MOST), Doc("Rows are truncated to this many tokens.")] = 512
    limit: Annotated[int | None, Ge(1), Le(MOST), Doc("Read only this many rows of the files, from the first.")] = None
