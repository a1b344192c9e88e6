"""The settings of tokenizing, and its result: rows as token ids, recorded positions and gold labels."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from shared.text.lengths import DEFAULT_STRIDE
from shared.text.predictions import LostWords

Int32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One row ready for a model: L tokens, P recorded positions.

    Attributes:
        input_ids: int32 [L].
        token_type_ids: int32 [L], 0 for the first text and 1 for the second; None if the row is not a pair.
        positions: int32 [P]; for one distribution per row, P is 1 and the position is 0.
        labels: int32 [P], gold labels, -100 if missing.
        lost: words with a gold tag that were truncated or have no token; None if there are none.
        question: the question's number in the files, if the row is a window of its context.
        columns: name -> further values of each recorded position, [P, ...]: those that the layout keeps (its
            `columns`) and those that the task's metrics need (its `scoring_columns`).
    """

    input_ids: Int32
    token_type_ids: Int32 | None
    positions: Int32
    labels: Int32
    lost: LostWords | None = None
    question: int | None = None
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tokenizing:
    """All settings that decide how rows are tokenized. A dump's manifest has the same values, or a fingerprint of them.

    Attributes:
        max_length: the largest number of tokens of a row.
        label_names: in the order of the classes.
        positions: the choice of recorded positions, a key of `Task.layouts`.
        seed: for positions that are drawn at random.
        chats: whether rows are lists of messages, which the tokenizer's own template renders.
        stride: the number of tokens by which the windows of a long context overlap.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    label_names: tuple[str, ...] = ()
    positions: str | None = None
    seed: int = 0
    chats: bool = False
    stride: int = DEFAULT_STRIDE
