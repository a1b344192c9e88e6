"""Questions and contexts as rows: windows as transformers cuts them, gold answers where they are, errors named."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from shared.errors import CorpusError
from shared.text.corpus import Corpus
from shared.text.examples import Answers, Columns, Example
from shared.text.tasks import task_named
from shared.text.tokenized import TokenizedRow, Tokenizing

TASK = task_named("question-answering")
COLUMNS = Columns.of_questions("question", "context", "answer_texts", "answer_starts", "is_impossible", False)
QUESTION = "which fox jumps"
CONTEXT = " the quick brown fox jumps over a lazy dog while seven wizards box some jugs of liquor "


def rows_of(how: Tokenizing, *examples: Example) -> list[TokenizedRow]:
    """Every window of every example."""
    windows = [
        Example(each.text, each.pair, each.label, window=window, number=number)
        for number, each in enumerate(examples)
        for window in range(TASK.count_rows(how, each))
    ]
    return TASK.tokenize(how, windows, 0)


def corpus(
    write_corpus: Any, path: Path, how: Tokenizing, rows: list[dict[str, Any]], limit: int | None = None
) -> Corpus:
    return TASK.corpus(how, [str(write_corpus(path, rows))], COLUMNS, limit)


def answered(how: Tokenizing, answer: str, context: str = CONTEXT) -> list[str | None]:
    """For each window the characters between the gold start and end; None where the gold label is "no answer"."""
    example = Example(QUESTION, context, Answers((answer,), (context.index(answer),)))
    found: list[str | None] = []
    for row in rows_of(how, example):
        (start,) = [at for at, label in enumerate(row.labels) if label & 1]
        (end,) = [at for at, label in enumerate(row.labels) if label & 2]
        is_none = row.columns["offsets"][start][0] < 0
        assert not is_none or (start == end and row.positions[start] == 0)
        found.append(None if is_none else context[row.columns["offsets"][start][0] : row.columns["offsets"][end][1]])
    return found


@pytest.mark.parametrize(("max_length", "stride"), [(16, 3), (20, 0), (24, 8), (64, 16)])
def test_windows_are_those_that_transformers_cuts(tiny_tokenizer: Any, max_length: int, stride: int) -> None:
    expected = tiny_tokenizer(
        QUESTION,
        CONTEXT,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_token_type_ids=True,
    )

    found = rows_of(Tokenizing(tiny_tokenizer, max_length, stride=stride), Example(QUESTION, CONTEXT))

    assert [row.input_ids.tolist() for row in found] == expected["input_ids"]
    assert [row.token_type_ids.tolist() for row in found if row.token_type_ids is not None] == expected[
        "token_type_ids"
    ]


def test_recorded_are_cls_and_every_context_token_of_the_window(tiny_tokenizer: Any) -> None:
    for row in rows_of(Tokenizing(tiny_tokenizer, 20, stride=5), Example(QUESTION, CONTEXT)):
        tokens = tiny_tokenizer.convert_ids_to_tokens(row.input_ids)
        first_context = tokens.index("[SEP]") + 1
        assert row.positions.tolist() == [0, *range(first_context, len(tokens) - 1)]
        assert row.columns["offsets"][0].tolist() == [-1, -1]
        for position, (first, last) in zip(row.positions[1:], row.columns["offsets"][1:], strict=True):
            assert CONTEXT[first:last] == tokens[position].removeprefix("##")


@pytest.mark.parametrize("stride", [0, 4, 500])
def test_windows_cover_every_token_of_the_context_and_overlap_by_the_stride_or_half_a_window(
    tiny_tokenizer: Any, stride: int
) -> None:
    rows = rows_of(Tokenizing(tiny_tokenizer, 24, stride=stride), Example(QUESTION, CONTEXT))
    whole = rows_of(Tokenizing(tiny_tokenizer, 500), Example(QUESTION, CONTEXT))
    spans = [
        [tuple(offset) for offset in row.columns["offsets"][1:].tolist()]
        for row in rows
        if row.columns["offsets"] is not None
    ]
    assert len(whole) == 1

    assert sorted({span for window in spans for span in window}) == [
        tuple(o) for o in whole[0].columns["offsets"][1:].tolist()
    ]
    assert all(len(row.input_ids) <= 24 for row in rows)
    overlaps = [len(set(one) & set(other)) for one, other in pairwise(spans)]
    assert set(overlaps) == {min(stride, len(spans[0]) // 2)}


def test_the_gold_answer_is_marked_in_every_window_that_holds_all_of_it(tiny_tokenizer: Any) -> None:
    how = Tokenizing(tiny_tokenizer, 14, stride=3)

    found = answered(how, "lazy dog")

    assert set(found) == {None, "lazy dog"}
    for window, row in zip(found, rows_of(how, Example(QUESTION, CONTEXT)), strict=True):
        held = CONTEXT[row.columns["offsets"][1][0] : row.columns["offsets"][-1][1]]
        assert (window == "lazy dog") == ("lazy dog" in held)


@pytest.mark.parametrize("answer", ["the", " the quick", "liquor ", "quick brown fox", "iz"])
def test_an_answer_is_marked_by_the_tokens_that_it_touches(tiny_tokenizer: Any, answer: str) -> None:
    (found,) = answered(Tokenizing(tiny_tokenizer, 200), answer)
    assert found is not None
    assert answer.strip() in found
    assert found.count(" ") == answer.strip().count(" ")


def test_unanswerable_is_marked_at_cls_and_unknown_not_at_all(tiny_tokenizer: Any) -> None:
    how = Tokenizing(tiny_tokenizer, 64)
    (none,) = rows_of(how, Example(QUESTION, CONTEXT, Answers()))
    (unknown,) = rows_of(how, Example(QUESTION, CONTEXT))
    assert none.labels[0] == 3
    assert set(none.labels[1:]) == {0}
    assert set(unknown.labels) == {-100}


def test_a_row_is_a_window_and_blocks_cut_through_questions(
    tmp_path: Path, write_corpus: Any, toy_rows: Any, tiny_tokenizer: Any
) -> None:
    how, rows = Tokenizing(tiny_tokenizer, 32, stride=8), toy_rows("question-answering", 12)
    opened = corpus(write_corpus, tmp_path / "a.jsonl", how, rows)
    survey = opened.survey(check=lambda example: TASK.check_row(how, example))
    blocks = [(first, parse()) for _, first, parse in opened.blocks(4)]
    examples = [example for _, block in blocks for example in block]

    assert survey.examples == 12
    assert survey.rows == len(examples) > 12
    assert [first for first, _ in blocks] == list(range(0, survey.rows, 4))
    assert {len(block) for _, block in blocks[:-1]} == {4}
    counted = [TASK.count_rows(how, Example(row["question"], row["context"])) for row in rows]
    places = [(number, window) for number, count in enumerate(counted) for window in range(count)]
    assert [(example.number, example.window) for example in examples] == places
    assert all(example.pair == rows[example.number or 0]["context"] for example in examples)
    assert survey.labelled_rows == sum(example.label is not None for example in examples)
    assert [examples[row] for row in survey.sample_numbers] == list(survey.sample)
    # Each block by itself gives the rows that all of them give together.
    apart = [row.input_ids.tolist() for _, block in blocks for row in TASK.tokenize(how, block, 0)]
    assert apart == [row.input_ids.tolist() for row in TASK.tokenize(how, examples, 0)]


def test_blocks_are_the_same_without_a_survey_and_limit_counts_questions(
    tmp_path: Path, write_corpus: Any, toy_rows: Any, tiny_tokenizer: Any
) -> None:
    how, rows = Tokenizing(tiny_tokenizer, 32, stride=8), toy_rows("question-answering", 12)
    opened = corpus(write_corpus, tmp_path / "a.parquet", how, rows, limit=5)
    examples = [example for *_, parse in opened.blocks(3) for example in parse()]
    assert {example.number for example in examples} == set(range(5))
    assert len(examples) == opened.survey().rows


GOOD = {"question": QUESTION, "context": CONTEXT, "answer_texts": ["lazy dog"], "answer_starts": [34]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"answer_starts": [3]},
            "line 2: the answer 'lazy dog' is not at character 3 of its context .there is 'e quick ",
        ),
        ({"answer_starts": [-1]}, "line 2: the answer 'lazy dog' is not at character -1"),
        ({"answer_texts": [" "], "answer_starts": [0]}, "line 2: an answer is empty"),
        ({"answer_starts": []}, "line 2: there are 1 answers in 'answer_texts' and 0 starts"),
        ({"answer_starts": ["34"]}, "line 2: column 'answer_starts' must hold a list of whole numbers"),
        ({"answer_texts": "lazy dog"}, "line 2: column 'answer_texts' must hold a list of answers"),
        ({"question": CONTEXT}, "line 2: the question ' the quick .* tokens, which leaves none of a row's 20 for its"),
        ({"context": None}, "line 2: column 'context' holds None"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    tmp_path: Path, write_corpus: Any, tiny_tokenizer: Any, changed: dict[str, Any], message: str
) -> None:
    how = Tokenizing(tiny_tokenizer, 20)
    opened = corpus(write_corpus, tmp_path / "a.jsonl", how, [GOOD, GOOD | changed])
    with pytest.raises(CorpusError, match=message):
        opened.survey(check=lambda example: TASK.check_row(how, example))


def test_is_impossible_overrules_answers(tmp_path: Path, write_corpus: Any, tiny_tokenizer: Any) -> None:
    rows = [GOOD | {"is_impossible": True}, GOOD | {"is_impossible": False}]
    opened = corpus(write_corpus, tmp_path / "a.parquet", Tokenizing(tiny_tokenizer, 200), rows)
    assert [example.label for example in opened.examples()] == [Answers(), Answers(("lazy dog",), (34,))]
