"""causal-lm: the token that follows, at every position but the last, or in chats where the assistant's follows.

The distribution at position t is that of token t + 1, so that L tokens have exactly L - 1 of them, or in chats as many
as the assistant's turns have tokens.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from shared.errors import UsageError
from shared.text.chat import Span, check_template, render, render_with_turns, tokens_of
from shared.text.examples import Example, Message
from shared.text.metrics import perplexity
from shared.text.predictions import Predictions
from shared.text.tasks.base import Task, encode
from shared.text.tokenized import Int32, TokenizedRow, Tokenizing

COMPLETION = "completion"
CHATS_AT_ONCE = 64


class CausalLM(Task):
    """Texts or chats; the text itself is the gold label."""

    name = "causal-lm"
    auto_class = "AutoModelForCausalLM"
    architectures = ("ForCausalLM", "LMHeadModel")
    layouts = {"all": "next-token", COMPLETION: "listed-next-token"}  # noqa: RUF012
    predicts_vocabulary = True
    is_causal = True
    reads_chats = True
    # Without it, BERT as a causal language model would see the answer.
    config_values = {"is_decoder": True}  # noqa: RUF012

    def check_tokenizing(self, how: Tokenizing) -> None:
        if how.chats:
            check_template(how.tokenizer)
        elif how.positions == COMPLETION:
            raise UsageError(
                f"positions {COMPLETION!r} are those of an assistant's turns, so rows must be chats: name the column "
                "that holds them (--messages-column, or messages_column in a recipe)."
            )

    def check_row(self, how: Tokenizing, example: Example) -> None:
        if how.chats:
            _rendered(how, example)

    def tokenize(self, how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
        if how.chats:
            return _tokenize_chats(how, examples)
        return [_row(np.asarray(ids, np.int32)) for ids in encode(how, examples)["input_ids"]]

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return perplexity(predictions)


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
            is_turn_L = None if spans is None else tokens_of(spans, offsets_L2)
            rows.append(_row(np.asarray(ids[: how.max_length], np.int32), is_turn_L))
    return rows


def _rendered(how: Tokenizing, example: Example) -> tuple[str, list[Span] | None]:
    """A chat as text, and where in it the assistant's turns are, if these alone are recorded."""
    messages = cast(list[Message], example.text)
    if how.positions == COMPLETION:
        return render_with_turns(how.tokenizer, messages)
    return render(how.tokenizer, messages), None


def _row(input_ids: Int32, is_turn_L: NDArray[np.bool_] | None = None) -> TokenizedRow:
    """Positions before every token, or before those of the assistant's turns."""
    positions = np.arange(len(input_ids) - 1) if is_turn_L is None else np.flatnonzero(is_turn_L[1:])
    return TokenizedRow(input_ids, None, positions.astype(np.int32), input_ids[positions + 1])
