"""Predictions and gold labels -> the task's metrics. The first entry of each result is the task's main metric."""

import math

import numpy as np

from shared.dump.rowgroup import MISSING
from shared.text.predictions import Predictions

# Of the main metrics; the others are shares of what is right.
LOWER_IS_BETTER = frozenset({"perplexity"})


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
