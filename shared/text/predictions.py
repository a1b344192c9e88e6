"""Predictions: what a model makes of some rows, as metrics take it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.dump.rowgroup import MISSING
from shared.text.examples import Example

# What is predicted of a word that the model never saw: no entity, whatever the labels are.
NOT_SEEN = -1


@dataclass(frozen=True)
class LostWords:
    """Words of a row that have a gold tag and no recorded position.

    Attributes:
        before: int64 [W], before which of the row's recorded positions each would stand.
        labels: int32 [W], their gold tags.
    """

    before: NDArray[np.int64]
    labels: NDArray[np.int32]

    @classmethod
    def of(cls, word_of_P: NDArray[np.int64], gold_W: NDArray[np.int32]) -> "LostWords | None":
        """Those of a row, from the word of each recorded position (rising) and the tag of each word."""
        lost = np.setdiff1d(np.flatnonzero(gold_W != MISSING), word_of_P)
        return cls(np.searchsorted(word_of_P, lost), gold_W[lost]) if len(lost) else None


@dataclass
class Predictions:
    """What a model said about some rows.

    Attributes:
        names: label names, in the order of the indices below; empty for tasks over a vocabulary.
        predicted: one integer array a row, the most probable class at each recorded position; -1 at a lost word. Of
            questions, which of the recorded positions is the first and which the last of the answer, most probably.
        labels: one integer array a row, the gold labels there, -100 where missing.
        negative_log_likelihood: the sum over positions with a gold label, in nats.
        labelled: how many such positions there are.
        rows: the rows' numbers in their source, in the order of `predicted` and `labels`.
        notes: what else the task has noted of each row for its metrics, by the row's number.
        examples: what each row was made from, by the row's number, for metrics that look at it.
    """

    names: tuple[str, ...] = ()
    predicted: list[NDArray[np.integer]] = field(default_factory=list)
    labels: list[NDArray[np.integer]] = field(default_factory=list)
    negative_log_likelihood: float = 0.0
    labelled: int = 0
    rows: list[int] = field(default_factory=list)
    notes: dict[int, Any] = field(default_factory=dict)
    examples: dict[int, Example] = field(default_factory=dict)

    def with_lost_words(self, lost: Mapping[int, LostWords]) -> "Predictions":
        """With the words that the rows named by number have lost put back, each predicted to be no entity: the true
        sentence is what is scored."""
        predicted, labels = list(self.predicted), list(self.labels)
        for index, row in enumerate(self.rows):
            if row in lost:
                predicted[index] = np.insert(predicted[index], lost[row].before, NOT_SEEN)
                labels[index] = np.insert(labels[index], lost[row].before, lost[row].labels)
        labelled = self.labelled + sum(len(lost[row].labels) for row in self.rows if row in lost)
        return replace(self, predicted=predicted, labels=labels, labelled=labelled)
