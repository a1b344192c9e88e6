"""The tokens that get their own embeddings in a student with a trimmed vocabulary.

These are the tokens that occur often enough in the training rows, and the special tokens. The student reads other
tokens as the tokenizer's unknown token. This happens after tokenization, so positions are still those of the teacher.

Shapes: V ids of the vocabulary, K ids that are kept.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import RecipeError
from student_train.data.sources import Source
from student_train.students import Student


def kept_ids(student: Student, source: Source) -> Tensor | None:
    """ids_K, ascending, of the tokens that this student keeps; None if it keeps the whole vocabulary.

    Raises:
        RecipeError: if the tokenizer has no unknown token, or no token occurs often enough.
    """
    at_least = student.fewest_occurrences
    if at_least is None:
        return None
    if source.tokenizer.unk_token_id is None:
        raise RecipeError(
            f"student.trim_vocabulary = {at_least}: the tokenizer of {source.name} has no unknown token that could "
            "replace the other tokens; leave the key out."
        )
    counts_V = token_counts(source)
    special = list(source.tokenizer.all_special_ids)
    counts_V[special] = 0
    if counts_V.max() < at_least:
        raise RecipeError(
            f"student.trim_vocabulary = {at_least}: no token of {source.name} occurs so often (the most frequent one "
            f"occurs {counts_V.max():,} times); choose a smaller number."
        )
    is_kept_V = counts_V >= at_least
    is_kept_V[special] = True
    return torch.from_numpy(np.flatnonzero(is_kept_V))


def token_counts(source: Source) -> NDArray[np.int64]:
    """The number of occurrences of each id in all rows, int64 [V]."""
    counts_V = np.zeros(source.vocabulary, np.int64)
    for group in range(len(source.group_rows)):
        counts_V += np.bincount(source.load(group, []).input_ids, minlength=source.vocabulary)
    return counts_V
