"""Tasks: rows become ids, positions and gold labels as plain calls of transformers say, predictions become metrics."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score as seqeval_f1
from sklearn.metrics import accuracy_score, f1_score
from transformers import PreTrainedTokenizerFast

from shared.dump.rowgroup import MISSING
from shared.errors import CorpusError, UsageError
from shared.text.corpus import Example
from shared.text.labels import label_index, names_from_values
from shared.text.metrics import Predictions, accuracy_and_f1, entity_f1, perplexity
from shared.text.rows import row_group
from shared.text.tasks import TASKS, task_named
from shared.text.tokenized import TokenizedRow, Tokenizing
from tests.shared.models.architectures import VOCABULARY, make

NAMES = ("negative", "neutral", "positive")
TAGS = ("O", "B-X", "I-X")


def tokenize(
    task: str, tokenizer: Any, examples: Sequence[Example], first_row: int = 0, **how: Any
) -> list[TokenizedRow]:
    positions = TASKS[task].check_positions(how.pop("positions", None))
    return TASKS[task].tokenize(
        Tokenizing(tokenizer, how.pop("max_length", 64), how.pop("names", ()), positions, **how), examples, first_row
    )


def examples_of(texts: Sequence[str]) -> list[Example]:
    return [Example(text) for text in texts]


# ---------------------------------------------------------------- tokenization


@pytest.mark.parametrize("max_length", [64, 8])
@pytest.mark.parametrize("task", ["causal-lm", "masked-lm", "sequence-classification", "encoder"])
def test_ids_are_those_of_the_tokenizer_called_row_by_row(
    task: str, max_length: int, tiny_tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    positions = {"masked-lm": "all"}.get(task)
    rows = tokenize(task, tiny_tokenizer, examples_of(texts[:50]), max_length=max_length, positions=positions)
    for row, text in zip(rows, texts, strict=False):
        assert row.input_ids.tolist() == tiny_tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
        assert row.input_ids.dtype == row.positions.dtype == row.labels.dtype == np.int32
        assert row.token_type_ids is None
    is_cut = [len(row.input_ids) == max_length for row in rows]
    assert any(is_cut) == (max_length == 8)


@pytest.mark.parametrize("task", ["masked-lm", "sequence-classification", "encoder"])
def test_pairs_carry_token_types_and_are_cut_as_the_tokenizer_cuts_them(
    task: str, tiny_tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    pairs = [Example(one, other) for one, other in zip(texts[:40], texts[40:80], strict=True)]
    positions = {"masked-lm": "all"}.get(task)
    for row, pair in zip(tokenize(task, tiny_tokenizer, pairs, max_length=20, positions=positions), pairs, strict=True):
        expected = tiny_tokenizer(pair.text, pair.pair, truncation=True, max_length=20, return_token_type_ids=True)
        assert row.input_ids.tolist() == expected["input_ids"]
        assert row.token_type_ids is not None
        assert row.token_type_ids.tolist() == expected["token_type_ids"]
        assert set(expected["token_type_ids"]) == {0, 1}


def test_causal_positions_are_all_but_the_last_and_labelled_with_the_token_that_follows(
    tiny_causal_tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    for row in tokenize("causal-lm", tiny_causal_tokenizer, examples_of([*texts[:20], "a", ""])):
        length = len(row.input_ids)
        assert row.positions.tolist() == list(range(length - 1))
        assert row.labels.tolist() == row.input_ids.tolist()[1:]
        for position, label in zip(row.positions, row.labels, strict=True):
            assert row.input_ids[position + 1] == label


def test_masking_is_that_of_bert_and_depends_on_seed_and_row_alone(
    tiny_tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    examples = examples_of(texts)
    rows = tokenize("masked-lm", tiny_tokenizer, examples, seed=1)
    alone = [tokenize("masked-lm", tiny_tokenizer, [example], at, seed=1)[0] for at, example in enumerate(examples)]
    other = tokenize("masked-lm", tiny_tokenizer, examples, seed=2)
    fates = {"mask": 0, "same": 0, "random": 0}
    chosen = ordinary_tokens = 0
    for row, same, text in zip(rows, alone, texts, strict=True):
        assert row.input_ids.tolist() == same.input_ids.tolist()
        assert row.positions.tolist() == same.positions.tolist()
        original = np.asarray(tiny_tokenizer(text, truncation=True, max_length=64)["input_ids"])
        assert row.labels.tolist() == original[row.positions].tolist()
        untouched = np.setdiff1d(np.arange(len(original)), row.positions)
        assert row.input_ids[untouched].tolist() == original[untouched].tolist()
        assert {0, len(original) - 1}.isdisjoint(row.positions.tolist()), "a special token was masked"
        assert len(row.positions) == max(1, round(0.15 * (len(original) - 2)))
        chosen += len(row.positions)
        ordinary_tokens += len(original) - 2
        for now, before in zip(row.input_ids[row.positions], row.labels, strict=True):
            fates["mask" if now == tiny_tokenizer.mask_token_id else "same" if now == before else "random"] += 1
    assert any(row.positions.tolist() != each.positions.tolist() for row, each in zip(rows, other, strict=True))
    assert chosen / ordinary_tokens == pytest.approx(0.15, abs=0.02)
    assert fates["mask"] / chosen == pytest.approx(0.8, abs=0.05)
    assert fates["same"] / chosen == pytest.approx(0.1, abs=0.04)
    assert fates["random"] / chosen == pytest.approx(0.1, abs=0.04)


def test_all_positions_of_a_masked_lm_are_the_ordinary_tokens_unmasked(
    tiny_tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    for row in tokenize("masked-lm", tiny_tokenizer, examples_of(texts[:10]), positions="all"):
        assert row.positions.tolist() == list(range(1, len(row.input_ids) - 1))
        assert row.labels.tolist() == row.input_ids[1:-1].tolist()


def test_a_row_to_classify_has_one_position_and_its_label(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    examples = [Example("the fox", None, "positive"), Example("a dog", None, "0"), Example("jugs")]
    rows = tokenize("sequence-classification", tiny_tokenizer, examples, names=NAMES)
    assert [row.labels.tolist() for row in rows] == [[2], [0], [MISSING]]
    assert [row.positions.tolist() for row in rows] == [[0], [0], [0]]


def test_a_row_without_tokens_cannot_be_classified(tiny_causal_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(CorpusError, match="row 8 has no tokens"):
        tokenize("sequence-classification", tiny_causal_tokenizer, examples_of(["a", ""]), first_row=7, names=NAMES)


def plain_alignment(tokenizer: Any, words: list[str], tags: list[str], max_length: int, every_piece: bool) -> Any:
    """Word by word: its pieces, of which the first (or each) is at a position and carries the word's tag."""
    ids, positions, labels = [tokenizer.cls_token_id], [], []
    for word, tag in zip(words, tags, strict=True):
        for number, piece in enumerate(tokenizer(word, add_special_tokens=False)["input_ids"]):
            if len(ids) == max_length - 1:
                break
            if number == 0 or every_piece:
                positions.append(len(ids))
                labels.append(TAGS.index(tag))
            ids.append(piece)
    return [*ids, tokenizer.sep_token_id], positions, labels


@pytest.mark.parametrize("positions", ["first-subtoken", "all"])
@pytest.mark.parametrize("max_length", [64, 9])
def test_tags_go_with_the_pieces_of_their_words(
    positions: str, max_length: int, tiny_tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    draw = np.random.default_rng(0)
    examples = []
    for text in texts[:60]:
        # Words that fall apart, and the same word twice in a row.
        words = [word for part in text.split() for word in ([part, part] if draw.random() < 0.2 else [part + "zq"])]
        examples.append(Example(words, None, [TAGS[at] for at in draw.integers(0, 3, len(words))]))
    rows = tokenize(
        "token-classification", tiny_tokenizer, examples, positions=positions, max_length=max_length, names=TAGS
    )
    pieces = 0
    for row, example in zip(rows, examples, strict=True):
        ids, at, labels = plain_alignment(tiny_tokenizer, example.text, example.label, max_length, positions == "all")  # type: ignore[arg-type]
        assert row.input_ids.tolist() == ids
        assert row.positions.tolist() == at
        assert row.labels.tolist() == labels
        pieces += len(ids) - 2 - len(at)
    assert (pieces == 0) == (positions == "all")


def test_missing_tags_are_missing_labels(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    examples = [Example(["the", "fox"], None, [None, "B-X"]), Example(["the", "fox"]), Example([])]
    rows = tokenize("token-classification", tiny_tokenizer, examples, names=TAGS)
    assert [row.labels.tolist() for row in rows] == [[MISSING, 1], [MISSING, MISSING], []]


def test_an_encoder_records_no_positions(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    (row,) = tokenize("encoder", tiny_tokenizer, examples_of(["the fox"]))
    assert (len(row.positions), len(row.labels)) == (0, 0)


def test_a_row_group_is_its_rows_one_after_the_other(tiny_tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    pairs = [Example(one, other) for one, other in zip(texts[:9], texts[9:18], strict=True)]
    rows = tokenize("masked-lm", tiny_tokenizer, pairs)
    group = row_group(rows, range(100, 109))
    assert group.rows.tolist() == list(range(100, 109))
    assert group.token_type_ids is not None
    for number, row in enumerate(rows):
        tokens = slice(*group.token_offsets[number : number + 2])
        positions = slice(*group.position_offsets[number : number + 2])
        assert group.input_ids[tokens].tolist() == row.input_ids.tolist()
        assert row.token_type_ids is not None
        assert group.token_type_ids[tokens].tolist() == row.token_type_ids.tolist()
        assert group.positions[positions].tolist() == row.positions.tolist()
        assert group.labels[positions].tolist() == row.labels.tolist()


# ---------------------------------------------------------------- what a model says


@pytest.mark.parametrize(
    ("task", "head", "shape"),
    [
        ("sequence-classification", "SequenceClassification", (1, 2)),
        ("token-classification", "TokenClassification", (1, 3, 2)),
        ("masked-lm", "MaskedLM", (1, 3, VOCABULARY)),
    ],
)
def test_logits_are_those_of_the_output(task: str, head: str, shape: tuple[int, ...]) -> None:
    output = make("bert", head)(input_ids=torch.tensor([[5, 6, 7]]))
    found = TASKS[task].logits_of(output)
    assert found is output.logits
    assert found.shape == shape


def test_logits_of_answers_are_where_they_start_and_where_they_end() -> None:
    output = make("bert", "QuestionAnswering")(input_ids=torch.tensor([[5, 6, 7]]))
    found = TASKS["question-answering"].logits_of(output)
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found[..., 0], output.start_logits)
    assert torch.equal(found[..., 1], output.end_logits)


def test_a_model_without_a_head_has_no_logits() -> None:
    assert TASKS["encoder"].logits_of(make("bert").base_model(input_ids=torch.tensor([[5, 6, 7]]))) is None


# ---------------------------------------------------------------- choices and refusals


def test_unknown_tasks_and_positions_are_refused_with_the_valid_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown task 'ner'; there are: causal-lm, .*token-classification"):
        task_named("ner")
    with pytest.raises(UsageError, match="'all' do not fit the task sequence-classification: there is nothing"):
        TASKS["sequence-classification"].check_positions("all")
    with pytest.raises(UsageError, match="'row' do not fit the task masked-lm: it has masked, all"):
        TASKS["masked-lm"].check_positions("row")
    assert TASKS["masked-lm"].check_positions(None) == "masked"
    assert TASKS["encoder"].check_positions(None) is None


def test_a_tokenizer_that_cannot_serve_the_task_is_refused(
    tiny_tokenizer: PreTrainedTokenizerFast, tiny_causal_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(UsageError, match="masked-lm needs a tokenizer with a mask token"):
        TASKS["masked-lm"].check_tokenizer(tiny_causal_tokenizer)

    class Slow:
        is_fast = False

    for task in TASKS.values():
        with pytest.raises(UsageError, match="needs a fast one"):
            task.check_tokenizer(Slow())  # type: ignore[arg-type]
        task.check_tokenizer(tiny_tokenizer)


def test_check_row_looks_at_every_tag_of_tasks_over_labels_only(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    how = Tokenizing(tiny_tokenizer, 64, TAGS)
    with pytest.raises(CorpusError, match="'Z' is not one of the 3 labels: O, B-X, I-X"):
        TASKS["token-classification"].check_row(how, Example(["a", "b"], None, ["O", "Z"]))
    with pytest.raises(CorpusError, match="'Z'"):
        TASKS["sequence-classification"].check_row(how, Example("a", None, "Z"))
    TASKS["causal-lm"].check_row(how, Example("a", None, "Z"))
    TASKS["token-classification"].check_row(how, Example(["a", "b"], None, ["O", None]))


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("value", "names", "index"),
    [
        ("neutral", NAMES, 1),
        ("2", NAMES, 2),
        (None, NAMES, MISSING),
        # A name comes before a number: five stars are the fifth of five labels, not the sixth.
        ("5", ("1", "2", "3", "4", "5"), 4),
        ("1", ("1", "2", "3", "4", "5"), 0),
    ],
)
def test_a_label_is_found_by_name_then_by_number(value: str | None, names: tuple[str, ...], index: int) -> None:
    assert label_index(value, names) == index


@pytest.mark.parametrize("value", ["3", "-1", "Positive", "", "1.5"])
def test_a_label_outside_the_set_is_refused_with_the_set(value: str) -> None:
    with pytest.raises(CorpusError, match="negative, neutral, positive") as raised:
        label_index(value, NAMES)
    assert value in str(raised.value)


def test_names_of_labels_are_sorted_or_counted() -> None:
    assert names_from_values({"b", "a", "10"}) == ("10", "a", "b")
    assert names_from_values({"10", "2", "0"}) == tuple(map(str, range(11)))
    assert names_from_values([]) == ()


@given(st.lists(st.integers(0, 300), min_size=1))
def test_numbers_keep_their_meaning_as_names(numbers: list[int]) -> None:
    names = names_from_values(map(str, numbers))
    assert all(label_index(str(number), names) == number for number in numbers)


# ---------------------------------------------------------------- metrics


def rows_of(flat: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(sizes)[:-1])


def test_accuracy_and_macro_f1_are_those_of_sklearn_over_labelled_rows() -> None:
    draw = np.random.default_rng(0)
    truth, guess = draw.integers(0, 4, 200), draw.integers(0, 5, 200)
    labels = np.where(draw.random(200) < 0.3, MISSING, truth)
    known = labels != MISSING
    found = accuracy_and_f1(
        Predictions(tuple("abcdef"), rows_of(guess, [1] * 200), rows_of(labels, [1] * 200), labelled=int(known.sum()))
    )
    assert list(found) == ["accuracy", "macro_f1"]
    assert found["accuracy"] == pytest.approx(accuracy_score(truth[known], guess[known]))
    assert found["macro_f1"] == pytest.approx(f1_score(truth[known], guess[known], average="macro", zero_division=0))


def test_entity_f1_is_that_of_seqeval_over_tagged_positions() -> None:
    draw = np.random.default_rng(0)
    sizes = draw.integers(1, 12, 60)
    truth = draw.integers(0, 3, sizes.sum())
    guess = np.where(draw.random(len(truth)) < 0.3, draw.integers(0, 3, len(truth)), truth)
    labels = np.where(draw.random(len(truth)) < 0.1, MISSING, truth)
    found = entity_f1(Predictions(TAGS, rows_of(guess, sizes), rows_of(labels, sizes), labelled=1))
    gold = rows_of(labels, sizes)
    names = [
        [[TAGS[tag] for tag in row[tags != MISSING]] for row, tags in zip(rows, gold, strict=True)]
        for rows in (gold, rows_of(guess, sizes))
    ]
    assert next(iter(found)) == "f1"
    assert found["f1"] == pytest.approx(seqeval_f1(*names))
    assert 0 < found["f1"] < 1
    assert found["f1"] == pytest.approx(2 / (1 / found["precision"] + 1 / found["recall"]))


def test_perplexity_is_exp_of_the_mean_loss() -> None:
    logits = torch.randn(50, 20, dtype=torch.float64)
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(50) % 20)
    found = perplexity(Predictions(negative_log_likelihood=float(loss) * 50, labelled=50))
    assert found == {"perplexity": pytest.approx(math.exp(loss)), "loss": pytest.approx(float(loss))}
    assert perplexity(Predictions(negative_log_likelihood=1e6, labelled=1))["perplexity"] < math.inf


def test_without_gold_labels_there_are_no_metrics() -> None:
    nothing = Predictions(NAMES, [np.zeros(1, int)], [np.full(1, MISSING)])
    assert accuracy_and_f1(nothing) == entity_f1(nothing) == perplexity(nothing) == {}
