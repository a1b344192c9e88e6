"""causal-lm: predict the next token, at every position or, in chats, only before tokens of the assistant.

The distribution at position t is that of token t + 1. So L tokens have exactly L - 1 distributions; in chats, with
positions "completion", there is one for each token of the assistant's turns.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from shared.errors import UsageError
from shared.text.beginnings import beginning
from shared.text.chat import Span, check_template, render, render_with_turns, tokens_of
from shared.text.examples import Example, Message
from shared.text.metrics import perplexity
from shared.text.predictions import Predictions
from shared.text.tasks.base import Task, encode
from shared.text.tokenized import Int32, TokenizedRow, Tokenizing

COMPLETION = "completion"
CHATS_AT_ONCE = 64


class CausalLM(Task):
    """Rows are texts or chats; the text itself is the gold label."""

    name = "causal-lm"
    auto_class = "AutoModelForCausalLM"
    architectures = ("ForCausalLM", "LMHeadModel")
    layouts = {"all": "next-token", COMPLETION: "listed-next-token"}  # noqa: RUF012
    predicts_vocabulary = True
    is_causal = True
    reads_chats = True
    # Without it, BERT as a causal language model would see the tokens to predict.
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
    """Positions "completion" are those whose next token belongs to an assistant's turn.

    The template itself writes all special tokens. Rows are truncated on the right whatever the tokenizer's own setting
    is, so that the beginning of a chat is kept.
    """
    rows = []
    # Offsets are Python objects, ten times as large as the ids, so only a few chats are tokenized at a time.
    for start in range(0, len(examples), CHATS_AT_ONCE):
        rendered = [_rendered(how, example) for example in examples[start : start + CHATS_AT_ONCE]]
        texts = [beginning(how.tokenizer, text, how.max_length) for text, _ in rendered]
        encoded = how.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for (_, spans), ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            offsets_L2 = np.asarray(offsets, np.int64).reshape(-1, 2)[: how.max_length]
            is_turn_L = None if spans is None else tokens_of(spans, offsets_L2)
            rows.append(_row(np.asarray(ids[: how.max_length], np.int32), is_turn_L))
    return rows


def _rendered(how: Tokenizing, example: Example) -> tuple[str, list[Span] | None]:
    """(a chat as text, the spans of the assistant's turns in it or None if all positions are recorded)."""
    messages = cast(list[Message], example.text)
    if how.positions == COMPLETION:
        return render_with_turns(how.tokenizer, messages)
    return render(how.tokenizer, messages), None


def _row(input_ids: Int32, is_turn_L: NDArray[np.bool_] | None = None) -> TokenizedRow:
    """The row with the positions before every token, or only before tokens of the assistant's turns."""
    positions = np.arange(len(input_ids) - 1) if is_turn_L is None else np.flatnonzero(is_turn_L[1:])
    return TokenizedRow(input_ids, None, positions.astype(np.int32), input_ids[positions + 1])
