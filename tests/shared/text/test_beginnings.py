"""Of texts far longer than a row only the beginning is tokenized, and the row is the same, with every tokenizer."""

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared.text import beginnings
from shared.text.beginnings import beginning
from shared.text.examples import Example
from shared.text.tasks.base import encode
from shared.text.tokenized import Tokenizing
from tests.tokenizer_families import FAMILIES, tokenizer_of

PIECES = (
    "the quick fox ",
    "naïve café ",
    "cafe\u0301",
    "東京は",
    "😀",
    "👨‍👩‍👧",
    "a",
    "aa",
    " ",
    "   ",
    "\n",
    "12",
    ".",
    "</s>",
    "ﷺ",
)
# A text as a long repetition, with something else before and after it.
TEXTS = st.tuples(
    st.lists(st.sampled_from(PIECES), max_size=4).map("".join),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join),
    st.integers(0, 60),
    st.lists(st.sampled_from(PIECES), max_size=3).map("".join),
).map(lambda parts: parts[0] + parts[1] * parts[2] + parts[3])

# Where both texts of a pair are cut, the tokenizers take quadratic time.
SHORTER = TEXTS.map(lambda text: text[:1000])


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return tokenizer_of(request.param)


@pytest.fixture(autouse=True)
def _a_small_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginnings, "MARGIN", 101)
    monkeypatch.setattr(beginnings, "CHARACTERS_A_TOKEN", 2)


def rows(how: Tokenizing, given: Example, monkeypatch: Any = None, **options: Any) -> list[Any]:
    encoded = encode(how, [given], **options)
    return [dict(encoded), encoded.word_ids(0)]


def whole(how: Tokenizing, given: Example, **options: Any) -> list[Any]:
    """The row of the whole text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beginnings, "CHARACTERS_A_TOKEN", 10**9)
        return rows(how, given, **options)


FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(text=TEXTS, length=st.integers(4, 12))
@example(text="a" * 1000, length=8)
@example(text=" " * 1000 + "a", length=8)
@example(text="aaa " * 500, length=9)
def test_a_texts_row_is_that_of_the_whole_text(tokenizer: Any, text: str, length: int) -> None:
    how = Tokenizing(tokenizer, length)
    assert rows(how, Example(text)) == whole(how, Example(text))


@settings(FEW, max_examples=4)
@given(first=SHORTER, second=SHORTER, length=st.integers(5, 12))
@example(first="the quick fox " * 40, second="a " * 300, length=11)
@example(first="the quick fox " * 40, second="a " * 80, length=12)
def test_a_pairs_row_is_that_of_the_whole_texts(tokenizer: Any, first: str, second: str, length: int) -> None:
    how = Tokenizing(tokenizer, length)
    assert rows(how, Example(first, second)) == whole(how, Example(first, second))


@FEW
@given(words=st.lists(TEXTS, max_size=3), times=st.integers(1, 30), length=st.integers(4, 12))
def test_a_sentences_row_is_that_of_all_words(tokenizer: Any, words: list[str], times: int, length: int) -> None:
    how, given = Tokenizing(tokenizer, length), Example(words * times)
    try:
        expected = whole(how, given, is_split_into_words=True)
    except AssertionError:  # transformers refuses some byte-level tokenizers here
        return
    assert rows(how, given, is_split_into_words=True) == expected


def test_the_rest_of_a_long_text_is_not_tokenized(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the quick fox " * 5_000
    assert len(beginning(tokenizer, text, 16)) < 1000


def test_a_text_that_is_kept_at_its_end_is_whole() -> None:
    tokenizer = tokenizer_of("WordPiece")
    tokenizer.truncation_side = "left"
    text = "the quick fox " * 1000 + "lazy dog"
    ids = encode(Tokenizing(tokenizer, 8), [Example(text)])["input_ids"][0]
    assert tokenizer.decode(ids, skip_special_tokens=True).endswith("lazy dog")
