"""Metrics of predictions with gold labels. The first entry of each result is the task's main metric."""

import math

import numpy as np
from numpy.typing import NDArray

from shared.dump.rowgroup import MISSING
from shared.text.predictions import Predictions

# Main metrics that are better when lower; the others are better when higher.
LOWER_IS_BETTER = frozenset({"perplexity"})
# Correlations with the scores of pairs of texts.
CORRELATIONS = ("spearman", "pearson")


def accuracy_and_f1(predictions: Predictions) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes that occur, both over the rows with a gold label."""
    from sklearn.metrics import f1_score

    if not predictions.labelled:
        return {}
    guesses, truth = np.concatenate(predictions.predicted), np.concatenate(predictions.labels)
    known = truth != MISSING
    guesses, truth = guesses[known], truth[known]
    macro_f1 = f1_score(truth, guesses, labels=np.unique([truth, guesses]), average="macro", zero_division=0)
    return {"accuracy": float((guesses == truth).mean()), "macro_f1": float(macro_f1)}


def entity_f1(predictions: Predictions) -> dict[str, float]:
    """Entity-level F1, precision and recall of seqeval (the CoNLL rules), over the positions with a gold tag."""
    from seqeval.metrics import f1_score, precision_score, recall_score

    if not predictions.labelled:
        return {}
    # "O" is last, so that it is the name of -1, the prediction for a lost word.
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


def correlations(similarities_P: NDArray[np.float64], scores_P: NDArray[np.float64]) -> dict[str, float]:
    """Spearman's rank correlation and Pearson's correlation of similarities with the scores of pairs, which differ.

    If all similarities are equal, no correlation is defined, and 0 is returned: they tell nothing about the scores.
    """
    from scipy.stats import pearsonr, spearmanr

    if np.ptp(similarities_P) == 0:
        return dict.fromkeys(CORRELATIONS, 0.0)
    values = (spearmanr(similarities_P, scores_P).statistic, pearsonr(similarities_P, scores_P).statistic)
    return dict(zip(CORRELATIONS, map(float, values), strict=True))
