"""Predictions of a model for some rows, the input of metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.dump.rowgroup import MISSING
from shared.text.examples import Example

# The prediction for a word that the model did not see: no entity, whatever the labels are.
NOT_SEEN = -1


@dataclass(frozen=True)
class LostWords:
    """Words of a row that have a gold tag but no recorded position.

    Attributes:
        before: int64 [W], the index of the recorded position before which each word belongs.
        labels: int32 [W], their gold tags.
    """

    before: NDArray[np.int64]
    labels: NDArray[np.int32]

    @classmethod
    def of(cls, word_of_P: NDArray[np.int64], gold_W: NDArray[np.int32]) -> "LostWords | None":
        """The lost words of a row, from the word of each recorded position (ascending) and the tag of each word."""
        lost = np.setdiff1d(np.flatnonzero(gold_W != MISSING), word_of_P)
        return cls(np.searchsorted(word_of_P, lost), gold_W[lost]) if len(lost) else None


@dataclass
class Predictions:
    """A model's predictions for some rows, with the gold labels.

    Attributes:
        names: label names, in the order of the class indices; empty for tasks over a vocabulary.
        predicted: one integer array per row: the most probable class at each recorded position, and -1 for a lost word.
            For questions, the most probable first and last of the answer's recorded positions.
        labels: one integer array per row: the gold labels at these positions, -100 if missing.
        negative_log_likelihood: the sum over positions with a gold label, in nats.
        labelled: the number of positions with a gold label.
        rows: the rows' numbers in their source, in the order of `predicted` and `labels`.
        notes: row number -> other values that the task's metrics need (`Task.notes`).
        examples: row number -> the example from which the row was made, if the task's metrics need it.
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
        """The predictions with lost words (by row number) inserted, each predicted as no entity.

        So whole sentences are scored, and not only the words that the model saw.
        """
        predicted, labels = list(self.predicted), list(self.labels)
        for index, row in enumerate(self.rows):
            if row in lost:
                predicted[index] = np.insert(predicted[index], lost[row].before, NOT_SEEN)
                labels[index] = np.insert(labels[index], lost[row].before, lost[row].labels)
        labelled = self.labelled + sum(len(lost[row].labels) for row in self.rows if row in lost)
        return replace(self, predicted=predicted, labels=labels, labelled=labelled)
