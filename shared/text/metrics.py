"""Predictions and gold labels -> the task's metrics. The first entry of each result is the task's main metric."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shared.text.examples import Example
from shared.text.labels import MISSING

if TYPE_CHECKING:
    from shared.text.answers import BestSpan


@dataclass
class Predictions:
    """What a model said about some rows.

    Attributes:
        names: label names, in the order of the indices below; empty for tasks over a vocabulary.
        predicted: one integer array a row, the most probable class at each recorded position.
        labels: one integer array a row, the gold labels there, -100 where missing.
        negative_log_likelihood: the sum over positions with a gold label, in nats.
        labelled: how many such positions there are.
        spans: of questions, the best answer in each row, by the row's number.
        examples: these rows, in order.
    """

    names: tuple[str, ...] = ()
    predicted: list[NDArray[np.integer]] = field(default_factory=list)
    labels: list[NDArray[np.integer]] = field(default_factory=list)
    negative_log_likelihood: float = 0.0
    labelled: int = 0
    spans: dict[int, "BestSpan"] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)


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
    names, rows = predictions.names, list(zip(predictions.predicted, predictions.labels, strict=True))
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
