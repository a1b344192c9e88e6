"""What tokenizing needs to know, and what it gives: rows as token ids, recorded positions and gold labels."""

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
        token_type_ids: int32 [L], 0 for the first text and 1 for the second; None where the row has no pair.
        positions: int32 [P]; of a distribution over the whole row P is 1 and the position is 0.
        labels: int32 [P], gold labels, -100 where missing.
        lost: the words with a gold tag that were cut off, or that the tokenizer makes nothing of; None for none.
        question: where the row is a window of a question's context, the question's number in the files.
        columns: what else there is of each recorded position, by name, [P, ...]: what the layout keeps (its `columns`)
            and what the task's metrics need (its `scoring_columns`).
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
    """Everything that decides how rows are tokenized; the dump's manifest holds the same values, or a fingerprint of
    them. `chats`: rows are lists of messages, which the tokenizer's own template renders. `stride`: by how many tokens
    the windows of a long context overlap."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    label_names: tuple[str, ...] = ()
    positions: str | None = None
    seed: int = 0
    chats: bool = False
    stride: int = DEFAULT_STRIDE
