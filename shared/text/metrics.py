"""Predictions and gold labels -> the task's metrics. The first entry of each result is the task's main metric."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shared.dump.rowgroup import MISSING
from shared.text.examples import Example

if TYPE_CHECKING:
    from shared.text.answers import BestSpan

# Of the main metrics; the others are shares of what is right.
LOWER_IS_BETTER = frozenset({"perplexity"})
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
        spans: of questions, the best answer in each row, by the row's number.
        examples: of questions, what each row was made from, by the row's number.
    """

    names: tuple[str, ...] = ()
    predicted: list[NDArray[np.integer]] = field(default_factory=list)
    labels: list[NDArray[np.integer]] = field(default_factory=list)
    negative_log_likelihood: float = 0.0
    labelled: int = 0
    rows: list[int] = field(default_factory=list)
    spans: dict[int, "BestSpan"] = field(default_factory=dict)
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


def accuracy_and_f1(predictions: Predictions) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes that occur; rows without a gold label do not count."""
    from sklearn.metrics import f1_score

    if not predictions.labelled:
        return {}
    guesses, truth = np.concatenate(predictions.predicted), np.concatenate(predictions.labels)
    known = truth != MISSING
    guesses, truth = guesses[known], truth[known]
    macro_f1 = f1_score(truth, guesses, labels=np.unique([truth, guesses]), average="macro", zero_division=0)
    return {"accuracy": float((guesses == truth).mean()), "macro_f1": float(macro_f1)}


def entity_f1(predictions: Predictions) -> dict[str, float]:
    """Entity-level F1, precision and recall by seqeval (the CoNLL rules), over the positions that carry a tag."""
    from seqeval.metrics import f1_score, precision_score, recall_score

    if not predictions.labelled:
        return {}
    # The last name is that of -1, a word that was never seen.
    names, rows = (*predictions.names, "O"), list(zip(predictions.predicted, predictions.labels, strict=True))
    truth = [[names[tag] for tag in gold[gold != MISSING]] for _, gold in rows]
    guesses = [[names[tag] for tag in guess[gold != MISSING]] for guess, gold in rows]
    return {
        "f1": float(f1_score(truth, guesses, zero_division=0)),
        "precision": float(precision_score(truth, guesses, zero_division=0)),
        "recall": float(recall_score(truth, guesses, zero_division=0)),
    }


def perplexity(predictions: Predictions) -> dict[str, float]:
    """exp of the mean negative log-likelihood (in nats) of the gold tokens."""
    if not predictions.labelled:
        return {}
    loss = predictions.negative_log_likelihood / predictions.labelled
    return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss}
