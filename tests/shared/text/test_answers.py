"""Exact match and F1 as SQuAD has them, against cases worked out by hand and a plain search for the best span."""

import numpy as np
import pytest

from shared.text.answers import BestSpan, answer_scores, best_span, exact_match, f1, normalised
from shared.text.examples import Answers, Example
from shared.text.predictions import Predictions

CONTEXT = "the quick brown fox"
QUICK, FOX = (4, 9), (16, 19)


def predictions(*questions: tuple[Answers | None, list[BestSpan]]) -> Predictions:
    windows = [(number, gold, at) for number, (gold, spans) in enumerate(questions) for at in range(len(spans))]
    examples = [Example("?", CONTEXT, gold, window=at, number=number) for number, gold, at in windows]
    made = Predictions(examples=dict(enumerate(examples)))
    made.notes = dict(enumerate(span for _, spans in questions for span in spans))
    return made


def span(characters: tuple[int, int], score: float, null_score: float = -9.0) -> BestSpan:
    return BestSpan(score, null_score, *characters)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  U.S. Senate, an upper-house", "us senate upperhouse"),
        ("A", ""),
        ("theatre and anthem", "theatre and anthem"),
        ("«Café»", "«café»"),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("prediction", "gold", "expected_f1", "expected_match"),
    [
        ("the Fox!", "fox", 1.0, 1.0),
        ("quick fox", "quick brown fox", 0.8, 0.0),  # precision 1, recall 2/3
        ("fox fox", "fox", 2 / 3, 0.0),  # a word counts as often as both have it
        ("dog", "fox", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        ("the", "", 1.0, 1.0),  # an article alone is nothing
        ("fox", "", 0.0, 0.0),
    ],
)
def test_f1_and_exact_match(prediction: str, gold: str, expected_f1: float, expected_match: float) -> None:
    assert f1(prediction, gold) == pytest.approx(expected_f1)
    assert exact_match(prediction, gold) == expected_match


def test_the_best_span_is_that_of_a_plain_search() -> None:
    draw = np.random.default_rng(0)
    for length in (1, 2, 40, 90):
        start_P, end_P = draw.normal(size=(2, length + 1))
        end_P[-1] = 5.0  # the best end lies beyond most starts' reach
        offsets_P2 = np.stack([np.arange(length + 1) * 3, np.arange(length + 1) * 3 + 2], 1)
        offsets_P2[0] = -1
        sums = {
            (first, last): start_P[first] + end_P[last]
            for first in range(1, length + 1)
            for last in range(first, min(first + 30, length + 1))
        }
        first, last = max(sums, key=lambda at: sums[at])

        found = best_span(start_P, end_P, offsets_P2)

        assert (found.first, found.last) == (3 * first, 3 * last + 2)
        assert found.score == pytest.approx(sums[first, last])
        assert found.null_score == pytest.approx(start_P[0] + end_P[0])


def test_a_window_without_context_never_wins() -> None:
    nothing = best_span(np.array([1.0]), np.array([1.0]), np.array([[-1, -1]]))
    assert nothing == BestSpan(-np.inf, 2.0, 0, 0)


def test_the_best_window_of_a_question_answers_and_the_best_gold_answer_counts() -> None:
    gold = Answers(("quick brown", "fox"), (4, 16))
    found = answer_scores(predictions((gold, [span(QUICK, 1.0), span(FOX, 2.0)]), (gold, [span(QUICK, 3.0)])))
    assert found == pytest.approx({"f1": (1 + 2 / 3) / 2, "exact_match": 0.5})


def test_questions_whose_answers_nobody_knows_do_not_count() -> None:
    gold = Answers(("fox",), (16,))
    found = answer_scores(predictions((None, [span(QUICK, 1.0)]), (gold, [span(FOX, 1.0)])))
    assert found == {"f1": 1.0, "exact_match": 1.0}
    assert answer_scores(predictions((None, [span(QUICK, 1.0)]))) == {}


def test_none_is_predicted_where_every_window_says_so_and_only_where_a_question_has_no_answer() -> None:
    gold = Answers(("fox",), (16,))
    sure_of_none = [span(FOX, 1.0, null_score=2.0), span(QUICK, 0.0, null_score=3.0)]
    one_doubts = [span(FOX, 1.0, null_score=0.0), span(QUICK, 0.0, null_score=3.0)]

    with_unanswerable = answer_scores(predictions((gold, sure_of_none), (gold, one_doubts), (Answers(), sure_of_none)))
    answerable_alone = answer_scores(predictions((gold, sure_of_none), (gold, one_doubts)))

    assert with_unanswerable == pytest.approx(
        {"f1": 2 / 3, "exact_match": 2 / 3, "f1_with_answer": 0.5, "f1_without_answer": 1.0}
    )
    assert answerable_alone == {"f1": 1.0, "exact_match": 1.0}
