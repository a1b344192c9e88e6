"""Answers are found by the characters of their tokens, with tokenizers of every family, as an ordinary call gives
them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.text.answers import best_span
from shared.text.examples import Answers, Example
from shared.text.predictions import Predictions
from shared.text.tasks import task_named
from shared.text.tokenized import TokenizedRow, Tokenizing
from tests.tokenizer_families import FAMILIES, TEXTS, tokenizer_of

TASK = task_named("question-answering")
QUESTION = "which fox ?"
WORDS = "the quick  brown fox jumps naïve café\ncafe\u0301 a 😀 東京 は 1 , x over Z nai\u0308ve . 👨‍👩‍👧 🇫🇷 lazy dog é"
# At the start, inside, at the end; of one letter, of several words; accents, emoji, CJK; beside two blanks, a new line.
ANSWERS = (
    *("the", "quick", "brown", "quick  brown fox", "naïve café", "café", "cafe\u0301", "café\ncafe\u0301", "a", "😀"),
    *("東京", "東京 は", "は", "1", ",", "x", "Z", "nai\u0308ve", "👨‍👩‍👧", "🇫🇷", "lazy dog", "é", "dog é", WORDS),
)


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return tokenizer_of(request.param)


def windows_of(tokenizer: Any, context: str, label: Answers | None, **options: Any) -> list[TokenizedRow]:
    how = Tokenizing(tokenizer, **({"max_length": 5000} | options))
    count = TASK.count_rows(how, Example(QUESTION, context))
    return TASK.tokenize(how, [Example(QUESTION, context, label, window=at, number=0) for at in range(count)], 0)


def answered(rows: list[TokenizedRow], context: str, gold: Answers) -> dict[str, float]:
    """The scores of a model that is certain of the gold labels of every window."""
    spans, examples = {}, {}
    for number, row in enumerate(rows):
        start_P, end_P = ((row.labels & mark > 0) * 10.0 for mark in (1, 2))
        spans[number] = best_span(start_P, end_P, row.columns["offsets"])
        examples[number] = Example(QUESTION, context, gold, number=0)
    return TASK.metrics(Predictions(("start", "end"), [], [], [], 0, notes=spans, examples=examples))


def found_at(context: str, answer: str) -> int:
    """Where the answer stands by itself."""
    return f" {context} ".replace("\n", " ").index(f" {answer} ".replace("\n", " "))


def whole(tokenizer: Any, context: str) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """(ids, offsets, positions of the context) of an ordinary call."""
    encoded = tokenizer(QUESTION, context, return_offsets_mapping=True)
    at = [position for position, sequence in enumerate(encoded.sequence_ids()) if sequence == 1]
    return encoded["input_ids"], encoded["offset_mapping"], at


def test_offsets_are_those_of_an_ordinary_call(tokenizer: Any) -> None:
    ids, offsets, at = whole(tokenizer, WORDS)
    (row,) = windows_of(tokenizer, WORDS, None)
    assert row.input_ids.tolist() == ids
    assert row.positions.tolist() == [0, *at]
    assert row.columns["offsets"].tolist() == [[-1, -1], *([*offsets[position]] for position in at)]


@pytest.mark.parametrize(("max_length", "stride"), [(24, 0), (24, 5), (40, 100)])
def test_windows_are_parts_of_an_ordinary_call(tokenizer: Any, max_length: int, stride: int) -> None:
    ids, offsets, at = whole(tokenizer, WORDS)
    room = max_length - (len(ids) - len(at))
    expected = tokenizer(
        QUESTION,
        WORDS,
        truncation="only_second",
        max_length=max_length,
        stride=min(stride, room // 2),
        return_overflowing_tokens=True,
        return_token_type_ids=True,
    )

    rows = windows_of(tokenizer, WORDS, None, max_length=max_length, stride=stride)

    assert [row.input_ids.tolist() for row in rows] == expected["input_ids"]
    first = 0
    for row in rows:
        part = [[*offsets[position]] for position in at[first : first + room]]
        assert row.columns["offsets"][1:].tolist() == part
        first += room - min(stride, room // 2)


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_found_whole_and_nothing_else(tokenizer: Any, answer: str) -> None:
    start = found_at(WORDS, answer)
    gold = Answers((answer,), (start,))
    (row,) = windows_of(tokenizer, WORDS, gold)
    (first,), (last,) = (np.flatnonzero(row.labels & mark) for mark in (1, 2))
    begin, end = row.columns["offsets"][first][0], row.columns["offsets"][last][1]
    bare = answer.rstrip("\u0301")  # normalisers that drop or compose accents leave the mark out
    assert WORDS[begin:end].strip() in (answer, bare)
    if len(row.labels[first : last + 1]) <= 30 and answer != ",":
        assert answered([row], WORDS, gold) == {"f1": 1.0, "exact_match": 1.0}


@given(
    words=st.lists(st.sampled_from(" ".join(TEXTS).split()), min_size=1, max_size=40),
    blanks=st.lists(st.sampled_from([" ", "  ", "\n", "\t"]), min_size=40, max_size=40),
    place=st.integers(0, 39),
    length=st.integers(1, 3),
    sizes=st.sampled_from([(32, 8), (64, 16), (5000, 0)]),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_answer_that_a_window_holds_is_found(
    tokenizer: Any, words: list[str], blanks: list[str], place: int, length: int, sizes: tuple[int, int]
) -> None:
    context = "".join(word + blank for word, blank in zip(words, blanks, strict=False))
    place = min(place, len(words) - 1)
    start = sum(len(word) + len(blank) for word, blank in zip(words[:place], blanks, strict=False))
    answer = context[start:][: sum(len(word) for word in words[place : place + length]) + length - 1].strip()
    end = start + len(answer)
    _, offsets, at = whole(tokenizer, context)
    spans = [offsets[position] for position in at]
    touched = [span for span in spans if span[1] > start and span[0] < end]

    rows = windows_of(tokenizer, context, Answers((answer,), (start,)), max_length=sizes[0], stride=sizes[1])

    for row in rows:
        marked = [row.columns["offsets"][np.flatnonzero(row.labels & mark)[0]].tolist() for mark in (1, 2)]
        if marked[0] != [-1, -1]:
            assert marked == [[*touched[0]], [*touched[-1]]]
    if len(rows) == 1:
        assert rows[0].labels[0] == 0
