"""Chats as text: what a tokenizer's own template makes of a conversation, and which of it the assistant said.

A template may mark what the assistant says with `{% generation %}`. Where it does not, a turn is what the text grows
by: the messages before it, with the header that asks for an answer, must be rendered as a prefix of the whole, and so
must the messages up to and with it. So the header is no part of a turn, and whatever ends it is.

Shapes: L tokens.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from shared.errors import CorpusError, UsageError
from shared.text.examples import Message

# First character and the one after the last.
Span = tuple[int, int]
_WAY_OUT = "mark what it says in the template ({% generation %} ... {% endgeneration %}), or record all positions"
_MARKS = re.compile(r"\{%[-+]?\s*generation\b")


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UsageError for a tokenizer without a chat template, or with one that says another thing every day."""
    try:
        template = tokenizer.get_chat_template()
    except ValueError:
        raise UsageError(
            "this tokenizer has no chat template, so nothing can render the chats; put the model's chat_template.jinja "
            "beside its tokenizer, or render them yourself into a text column."
        ) from None
    if "strftime_now" in template:
        raise UsageError(
            "this tokenizer's chat template writes today's date (strftime_now), so that the same chat has other tokens "
            "tomorrow; write a fixed date into the template in its place."
        )


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], ask: bool = False) -> str:
    """The chat as text, special tokens and all; with `ask`, the header of the assistant's next turn at its end.

    Raises:
        CorpusError: when the template refuses the chat.
    """
    return _render(tokenizer, messages, ask)[0]


def render_with_turns(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """The chat as text, and where in it the assistant's turns are, each with what ends it.

    Raises:
        CorpusError: when the template refuses the chat, or does not tell where the turns are.
    """
    if _MARKS.search(tokenizer.get_chat_template()):
        return _render(tokenizer, messages)
    text = render(tokenizer, messages)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return text, [_turn(tokenizer, messages, index, text) for index in turns]


def tokens_of(spans: Sequence[Span], offsets_L2: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which tokens belong to the spans, bool [L]: those with a character in one.

    A token that straddles a border belongs, as in transformers' own mask: where the template's last blank and the
    answer's first word are one token, the answer would lose that word otherwise.

    >>> tokens_of([(2, 5)], np.array([[0, 2], [2, 4], [4, 6], [6, 7]])).tolist()
    [False, True, True, False]
    """
    starts_L, ends_L = offsets_L2.T
    inside_L = np.zeros(len(offsets_L2), np.bool_)
    for start, end in spans:
        inside_L |= (starts_L < end) & (ends_L > start)
    return inside_L


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], ask: bool = False
) -> tuple[str, list[Span]]:
    """As `apply_chat_template` does, which keeps the spans between generation marks to itself."""
    try:
        texts, spans = render_jinja_template(
            conversations=[messages],
            chat_template=tokenizer.get_chat_template(),
            return_assistant_tokens_mask=bool(_MARKS.search(tokenizer.get_chat_template())),
            add_generation_prompt=ask,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # a template is a program, and raises what it likes
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise CorpusError(f"the chat template refuses this chat ({reason}); mend or drop this row.") from None
    return texts[0], spans[0] if spans else []


def _turn(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], index: int, text: str) -> Span:
    """Where the assistant's message `index` is in the rendered chat."""
    if index == 0:
        raise CorpusError(
            "the chat begins with the assistant, and no template renders the header of its turn without a message "
            f"before; {_WAY_OUT}, or drop this row."
        )
    before = render(tokenizer, messages[:index], ask=True)
    after = render(tokenizer, messages[: index + 1])
    if not (text.startswith(before) and text.startswith(after) and len(before) <= len(after)):
        raise CorpusError(
            f"the chat template renders the messages up to number {index}, the assistant's, otherwise than in the "
            f"whole chat, so where its turn is cannot be told; {_WAY_OUT}."
        )
    said, added = messages[index].get("content"), text[len(before) : len(after)]
    if "add_generation_prompt" not in tokenizer.get_chat_template() and isinstance(said, str):
        header = added.partition(said.strip())[0]
        if header.strip():
            raise CorpusError(
                f"the chat template writes {header.strip()!r} before the assistant's message {index}, but knows no "
                f"add_generation_prompt, so where its turn begins cannot be told; {_WAY_OUT}."
            )
    return len(before), len(after)
