"""The tasks: how a row becomes token ids, recorded positions and gold labels, and how predictions become metrics.

Each task is described here once; `dump`, fine-tuning on gold labels and `distill eval` all go through it. A position
is an index into the row's tokens. In causal-lm the distribution recorded at position t is that of token t + 1, so that
L tokens have exactly L - 1 of them, or in chats as many as the assistant's turns have tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from shared.dump.layouts.spans import ENDPOINTS
from shared.errors import CorpusError, UsageError
from shared.text.answers import answer_scores
from shared.text.chat import Span, check_template, render, render_with_turns, tokens_of
from shared.text.corpus import Columns, Corpus
from shared.text.examples import Answers, Example, Message
from shared.text.labels import label_index
from shared.text.metrics import LostWords, Predictions, accuracy_and_f1, entity_f1, perplexity
from shared.text.questions import check_answers, count_windows, tokenize_questions
from shared.text.tokenized import Int32, TokenizedRow, Tokenizing

MASK_PROBABILITY = 0.15
COMPLETION = "completion"
CHATS_AT_ONCE = 64


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        auto_class: the class of transformers that loads its models.
        classes: what a distribution is over: the "labels", the "vocabulary", a row's own recorded positions ("spans":
            one for where an answer starts, one for where it ends), or None without one.
        recorded: the valid choices of positions, the default first (None where there is no choice) -> where a row's
            distributions and gold labels then are.
        words: its rows are lists of words with one tag each.
        chats: its rows may be lists of messages.
        label_names: those of every model of the task, where data and models have no say.
        windows: how many rows an example of the files becomes, where that is not one.
        tokenize: rows and the number of the first of them -> TokenizedRow each.
        metrics: what a model said about some rows -> name and value of each metric, the main one first.
    """

    name: str
    auto_class: str
    classes: Literal["labels", "vocabulary", "spans"] | None
    recorded: Mapping[str | None, str]
    tokenize: Callable[[Tokenizing, Sequence[Example], int], list[TokenizedRow]]
    metrics: Callable[[Predictions], dict[str, float]] | None = None
    words: bool = False
    chats: bool = False
    label_names: tuple[str, ...] | None = None
    windows: Callable[[Tokenizing, Example], int] | None = None

    def check_positions(self, choice: str | None) -> str | None:
        """The choice of recorded positions, or this task's default. Raises UsageError for one that it lacks."""
        if choice is not None and choice not in self.recorded:
            valid = ", ".join(name for name in self.recorded if name is not None)
            what = f"it has {valid}" if valid else "there is nothing to choose"
            raise UsageError(f"positions {choice!r} do not fit the task {self.name}: {what}.")
        return choice or next(iter(self.recorded))

    def check_chats(self, how: Tokenizing) -> None:
        """Raises UsageError for chats where the task or the tokenizer reads none, and for their positions without."""
        if how.chats and not self.chats:
            able = ", ".join(task.name for task in TASKS.values() if task.chats)
            raise UsageError(f"the task {self.name} reads no messages column; chats are for {able}.")
        if how.chats:
            check_template(how.tokenizer)
        if how.positions == COMPLETION and not how.chats:
            raise UsageError(
                f"positions {COMPLETION!r} are those of an assistant's turns, so rows must be chats: name the column "
                "that holds them (--messages-column, or messages_column in a recipe)."
            )

    def check_row(self, how: Tokenizing, example: Example) -> None:
        """Raises CorpusError for a gold label that is not one of the task's, a chat that cannot be rendered, or an
        answer that is not where it should be."""
        if how.chats:
            _rendered(how, example)
        if self.classes == "labels":
            for label in example.label if isinstance(example.label, list) else [example.label]:
                assert not isinstance(label, Answers)
                label_index(label, how.label_names)
        check_answers(example)


def _encode(how: Tokenizing, examples: Sequence[Example], **options: Any) -> Any:
    texts = [example.text for example in examples]
    pairs = [example.pair for example in examples]
    has_pairs = bool(pairs) and pairs[0] is not None
    return how.tokenizer(
        texts,
        pairs if has_pairs else None,
        truncation=True,
        max_length=how.max_length,
        return_attention_mask=False,
        return_token_type_ids=has_pairs,
        verbose=False,
        **options,
    )


def _token_types(encoded: Any, index: int) -> Int32 | None:
    return np.asarray(encoded["token_type_ids"][index], np.int32) if "token_type_ids" in encoded else None


def _tokenize_causal(how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
    if how.chats:
        return _tokenize_chats(how, examples)
    return [_next_token_row(np.asarray(ids, np.int32)) for ids in _encode(how, examples)["input_ids"]]


def _tokenize_chats(how: Tokenizing, examples: Sequence[Example]) -> list[TokenizedRow]:
    """Positions "completion": those whose next token is of an assistant's turn. The template writes every special token
    itself, and rows are cut on the right whatever the tokenizer's own side is, so that their beginning stays."""
    rows = []
    # Offsets are Python objects, ten times as large as the ids: there are never those of more than a few chats.
    for start in range(0, len(examples), CHATS_AT_ONCE):
        rendered = [_rendered(how, example) for example in examples[start : start + CHATS_AT_ONCE]]
        texts = [text for text, _ in rendered]
        encoded = how.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for (_, spans), ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            offsets_L2 = np.asarray(offsets, np.int64).reshape(-1, 2)[: how.max_length]
            is_said_L = None if spans is None else tokens_of(spans, offsets_L2)
            rows.append(_next_token_row(np.asarray(ids[: how.max_length], np.int32), is_said_L))
    return rows


def _rendered(how: Tokenizing, example: Example) -> tuple[str, list[Span] | None]:
    """A chat as text, and where in it the assistant's turns are, if these alone are recorded."""
    messages = cast(list[Message], example.text)
    if how.positions == COMPLETION:
        return render_with_turns(how.tokenizer, messages)
    return render(how.tokenizer, messages), None


def _next_token_row(input_ids: Int32, is_said_L: NDArray[np.bool_] | None = None) -> TokenizedRow:
    """Positions before every token, or before those that were said."""
    positions = np.arange(len(input_ids) - 1) if is_said_L is None else np.flatnonzero(is_said_L[1:])
    return TokenizedRow(input_ids, None, positions.astype(np.int32), input_ids[positions + 1])


def _tokenize_masked(how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
    """Positions "masked": BERT's masking (Devlin et al. 2019, section 3.1), drawn from (seed, row) alone: 15% of the
    ordinary tokens and at least one, of which 80% become the mask token, 10% a random one and 10% stay."""
    tokenizer = how.tokenizer
    encoded = _encode(how, examples, return_special_tokens_mask=True)
    rows = []
    for index, ids in enumerate(encoded["input_ids"]):
        original = np.asarray(ids, np.int32)
        ordinary = np.flatnonzero(np.asarray(encoded["special_tokens_mask"][index]) == 0).astype(np.int32)
        if how.positions == "all":
            rows.append(TokenizedRow(original, _token_types(encoded, index), ordinary, original[ordinary]))
            continue
        draw = np.random.default_rng([how.seed, first_row + index])
        count = min(len(ordinary), max(1, round(MASK_PROBABILITY * len(ordinary))))
        chosen = np.sort(draw.choice(ordinary, count, replace=False))
        fate = draw.random(count)
        masked = original.copy()
        masked[chosen[fate < 0.8]] = tokenizer.mask_token_id
        random_ones = chosen[(fate >= 0.8) & (fate < 0.9)]
        masked[random_ones] = draw.integers(0, tokenizer.vocab_size, len(random_ones))
        rows.append(TokenizedRow(masked, _token_types(encoded, index), chosen, original[chosen]))
    return rows


def _tokenize_sequence(how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
    encoded = _encode(how, examples)
    position = np.zeros(1, np.int32)
    rows = []
    for index, (ids, example) in enumerate(zip(encoded["input_ids"], examples, strict=True)):
        if not ids:
            raise CorpusError(f"row {first_row + index} has no tokens, so nothing to classify; drop empty texts.")
        assert not isinstance(example.label, list | Answers)
        label = np.asarray([label_index(example.label, how.label_names)], np.int32)
        rows.append(TokenizedRow(np.asarray(ids, np.int32), _token_types(encoded, index), position, label))
    return rows


def _tokenize_words(how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
    """Positions "first-subtoken": the first piece of each word; "all": every piece, tagged as its word is."""
    encoded = _encode(how, examples, is_split_into_words=True)
    rows = []
    for index, (ids, example) in enumerate(zip(encoded["input_ids"], examples, strict=True)):
        words = encoded.word_ids(index)
        positions = [
            at
            for at, word in enumerate(words)
            if word is not None and (how.positions == "all" or at == 0 or words[at - 1] != word)
        ]
        tags = example.label if isinstance(example.label, list) else [None] * len(example.text)
        word_of_P = np.asarray([words[at] for at in positions], np.int64)
        gold_W = np.asarray([label_index(tag, how.label_names) for tag in tags], np.int32)
        lost = LostWords.of(word_of_P, gold_W)
        found = np.asarray(ids, np.int32), None, np.asarray(positions, np.int32), gold_W[word_of_P], lost
        rows.append(TokenizedRow(*found))
    return rows


def _tokenize_encoder(how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
    encoded = _encode(how, examples)
    nothing = np.zeros(0, np.int32)
    return [
        TokenizedRow(np.asarray(ids, np.int32), _token_types(encoded, index), nothing, nothing)
        for index, ids in enumerate(encoded["input_ids"])
    ]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="causal-lm",
            auto_class="AutoModelForCausalLM",
            classes="vocabulary",
            recorded={"all": "next-token", COMPLETION: "listed-next-token"},
            tokenize=_tokenize_causal,
            metrics=perplexity,
            chats=True,
        ),
        Task(
            name="masked-lm",
            auto_class="AutoModelForMaskedLM",
            classes="vocabulary",
            recorded={"masked": "listed", "all": "listed"},
            tokenize=_tokenize_masked,
            metrics=perplexity,
        ),
        Task(
            name="sequence-classification",
            auto_class="AutoModelForSequenceClassification",
            classes="labels",
            recorded={None: "row"},
            tokenize=_tokenize_sequence,
            metrics=accuracy_and_f1,
        ),
        Task(
            name="token-classification",
            auto_class="AutoModelForTokenClassification",
            classes="labels",
            recorded={"first-subtoken": "listed", "all": "listed"},
            tokenize=_tokenize_words,
            metrics=entity_f1,
            words=True,
        ),
        Task(
            name="question-answering",
            auto_class="AutoModelForQuestionAnswering",
            classes="spans",
            recorded={None: "spans"},
            tokenize=tokenize_questions,
            metrics=answer_scores,
            label_names=ENDPOINTS,
            windows=count_windows,
        ),
        Task(
            name="encoder",
            auto_class="AutoModel",
            classes=None,
            recorded={None: "none"},
            tokenize=_tokenize_encoder,
        ),
    )
}


def task_named(name: str) -> Task:
    """The task of this name. Raises UsageError that lists the valid ones."""
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}.")
    return TASKS[name]


def corpus_of(task: Task, how: Tokenizing, paths: Sequence[str], columns: Columns, limit: int | None = None) -> Corpus:
    """The corpus in these files, each example of which becomes as many rows as the task makes of it."""
    return Corpus(paths, columns, limit, None if task.windows is None else partial(task.windows, how))


def check_tokenizer(task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UsageError where the tokenizer lacks what the task needs."""
    if not tokenizer.is_fast:
        raise UsageError("this tokenizer is a slow one; Lectern needs a fast one (a tokenizer.json), which dumps keep.")
    if task.name == "masked-lm" and tokenizer.mask_token_id is None:
        raise UsageError("masked-lm needs a tokenizer with a mask token; this one has none.")
