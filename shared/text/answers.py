"""Answers from the start and end logits of a question's windows, and their exact match and F1 as in SQuAD.

Shapes: P recorded positions of a window.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from shared.text.examples import Answers, Example
from shared.text.predictions import Predictions

MOST_ANSWER_TOKENS = 30


@dataclass(frozen=True, slots=True)
class BestSpan:
    """The best answer in a window.

    Attributes:
        score: the sum of its start and end logits; -inf for a window without context.
        null_score: the same sum for "no answer".
        first, last: its characters of the context, first and one past the last.
    """

    score: float
    null_score: float
    first: int
    last: int


def best_span(start_P: NDArray[np.floating], end_P: NDArray[np.floating], offsets_P2: NDArray[np.integer]) -> BestSpan:
    """The span of at most 30 tokens with the largest sum of start and end logit.

    The position for "no answer" has offsets -1. Devlin et al. 2019, "BERT" (arXiv 1810.04805), sections 4.2 and 4.3.

    >>> offsets = np.array([[-1, -1], [0, 3], [4, 9]])
    >>> best_span(np.array([0.0, 2.0, 1.0]), np.array([0.5, 0.0, 3.0]), offsets)
    BestSpan(score=5.0, null_score=0.5, first=0, last=9)
    """
    is_context_P = offsets_P2[:, 0] >= 0
    null = start_P[~is_context_P] + end_P[~is_context_P]
    start_C, end_C, offsets_C2 = start_P[is_context_P], end_P[is_context_P], offsets_P2[is_context_P]
    best = -np.inf, 0, 0
    for tokens in range(min(MOST_ANSWER_TOKENS, len(start_C))):
        sums = start_C[: len(start_C) - tokens] + end_C[tokens:]
        at = int(sums.argmax())
        if sums[at] > best[0]:
            best = float(sums[at]), at, at + tokens
    first, last = (int(offsets_C2[best[1], 0]), int(offsets_C2[best[2], 1])) if len(start_C) else (0, 0)
    return BestSpan(best[0], float(null.max(initial=-np.inf)), first, last)


def answer_scores(predictions: Predictions) -> dict[str, float]:
    """Means of F1 and exact match over the questions with known answers; each is the best over the gold answers.

    The predicted answer of a question is the best of its windows. If some questions have no answer, "no answer" may be
    predicted too: if the lowest of the windows' scores for it is higher than that of the best span. F1 is then also
    given for the questions with and without an answer.
    """
    found = [(question, answer, none) for question, answer, none in _answered(predictions) if question is not None]
    if not found:
        return {}
    may_be_none = any(not gold.texts for gold, _, _ in found)
    scores = []
    for gold, answer, is_none in found:
        text = "" if may_be_none and is_none else answer
        # For a question without an answer, only the empty answer is right.
        scores.append([max(measure(text, each) for each in gold.texts or ("",)) for measure in (f1, exact_match)])
    scores_Q2 = np.asarray(scores)
    result = {"f1": float(scores_Q2[:, 0].mean()), "exact_match": float(scores_Q2[:, 1].mean())}
    if may_be_none:
        has_answer = np.asarray([bool(gold.texts) for gold, _, _ in found])
        for name, chosen in (("f1_with_answer", has_answer), ("f1_without_answer", ~has_answer)):
            result |= {name: float(scores_Q2[chosen, 0].mean())} if chosen.any() else {}
    return result


def _answered(predictions: Predictions) -> Iterable[tuple[Answers | None, str, bool]]:
    """Yield (gold answers if known, the best span, whether "no answer" scores higher) of each question."""
    rows = [(predictions.examples[row], predictions.notes[row]) for row in sorted(predictions.examples)]
    for _, windows in groupby(rows, key=lambda row: row[0].number):
        examples, spans = zip(*windows, strict=True)
        example: Example = examples[0]
        best = max(spans, key=attrgetter("score"))
        gold = example.label if isinstance(example.label, Answers) else None
        none = min(span.null_score for span in spans)
        yield gold, _text(str(example.pair), best), none > best.score


def _text(context: str, span: BestSpan) -> str:
    """Return the text of a span, with the marks that belong to its last letter.

    Normalisers that drop or compose accents leave the marks out of a token's characters.
    """
    last = span.last
    while span.first < last < len(context) and unicodedata.combining(context[last]):
        last += 1
    return context[span.first : last]


def exact_match(prediction: str, gold: str) -> float:
    """1 if both are the same after normalisation, else 0."""
    return float(normalised(prediction) == normalised(gold))


def f1(prediction: str, gold: str) -> float:
    """F1 of the words after normalisation; 1 if both are empty.

    Rajpurkar et al. 2016, "SQuAD" (arXiv 1606.05250), section 6.1.

    >>> f1("the Quick fox", "quick brown fox."), f1("", ""), f1("fox", "")
    (0.8, 1.0, 0.0)
    """
    words, gold_words = normalised(prediction).split(), normalised(gold).split()
    if not words or not gold_words:
        return float(words == gold_words)
    common = sum((Counter(words) & Counter(gold_words)).values())
    return 2 * common / (len(words) + len(gold_words))


def normalised(text: str) -> str:
    """The text in lower case, without punctuation and English articles, with single blanks.

    >>> normalised("The  U.S. Senate, an  upper house")
    'us senate upper house'
    """
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())
