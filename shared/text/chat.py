"""Render chats as text with the tokenizer's own template, and find the spans of the assistant's turns in it.

A template may mark the assistant's turns with `{% generation %}`. If it does not, a turn is found by rendering twice:
the messages before it with the generation prompt (the header of the assistant's turn), and the messages up to and
including it. Both must be prefixes of the whole text, and the turn is the difference. So a turn does not include its
header, but includes the end-of-turn token.

Shapes: L tokens.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from shared.deadline import deadline
from shared.errors import CorpusError, UsageError
from shared.text.examples import Message

# (first character, one past the last).
Span = tuple[int, int]
_WAY_OUT = "mark its turns in the template ({% generation %} ... {% endgeneration %}), or record all positions"
# A template is a program of unknown origin; an honest one takes milliseconds.
SECONDS_A_CHAT = 10.0
_MARKS = re.compile(r"\{%[-+]?\s*generation\b")


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check the chat template. Raises UsageError if there is none, or if its text depends on today's date."""
    try:
        template = tokenizer.get_chat_template()
    except ValueError:
        raise UsageError(
            "this tokenizer has no chat template, so the chats cannot be rendered; put the model's chat_template.jinja "
            "beside its tokenizer, or render them yourself into a text column."
        ) from None
    if "strftime_now" in template:
        raise UsageError(
            "this tokenizer's chat template writes today's date (strftime_now), so the same chat will have other "
            "tokens tomorrow; replace the date in the template by a fixed one."
        )


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], ask: bool = False) -> str:
    """The chat as text, including special tokens; with `ask`, followed by the header of the assistant's next turn.

    Raises:
        CorpusError: if the template refuses the chat.
    """
    return _render(tokenizer, messages, ask)[0]


def render_with_turns(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """(the chat as text, the spans of the assistant's turns in it, including their end-of-turn tokens).

    Raises:
        CorpusError: if the template refuses the chat, or the turns cannot be found.
    """
    if _MARKS.search(tokenizer.get_chat_template()):
        return _render(tokenizer, messages)
    text = render(tokenizer, messages)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return text, [_turn(tokenizer, messages, index, text) for index in turns]


def tokens_of(spans: Sequence[Span], offsets_L2: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each token has a character in one of the spans, bool [L].

    This includes tokens across a border, as in the mask of transformers: if the template's last blank and the answer's
    first word are one token, the answer would lose that word otherwise.

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
    """(the chat as text, the spans between generation marks), which `apply_chat_template` does not return."""
    try:
        with deadline(SECONDS_A_CHAT):
            texts, spans = render_jinja_template(
                conversations=[messages],
                chat_template=tokenizer.get_chat_template(),
                return_assistant_tokens_mask=bool(_MARKS.search(tokenizer.get_chat_template())),
                add_generation_prompt=ask,
                **tokenizer.special_tokens_map,
            )
    except TimeoutError as error:
        raise CorpusError(f"the chat template is {error}; correct the template, or drop this row.") from None
    except Exception as error:  # a template is a program and may raise anything
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise CorpusError(f"the chat template refuses this chat ({reason}); correct or drop this row.") from None
    return texts[0], spans[0] if spans else []


def _turn(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], index: int, text: str) -> Span:
    """The span of the assistant's message `index` in the rendered chat."""
    if index == 0:
        raise CorpusError(
            "the chat begins with the assistant, and no template renders the header of its turn without a message "
            f"before; {_WAY_OUT}, or drop this row."
        )
    before = render(tokenizer, messages[:index], ask=True)
    after = render(tokenizer, messages[: index + 1])
    if not (text.startswith(before) and text.startswith(after) and len(before) <= len(after)):
        raise CorpusError(
            f"the chat template renders the messages up to number {index}, the assistant's, differently than in the "
            f"whole chat, so the assistant's turn cannot be found; {_WAY_OUT}."
        )
    content, added = messages[index].get("content"), text[len(before) : len(after)]
    if "add_generation_prompt" not in tokenizer.get_chat_template() and isinstance(content, str):
        header = added.partition(content.strip())[0]
        if header.strip():
            raise CorpusError(
                f"the chat template writes {header.strip()!r} before the assistant's message {index}, but has no "
                f"add_generation_prompt, so the beginning of its turn cannot be found; {_WAY_OUT}."
            )
    return len(before), len(after)
