"""The beginning of a text that is far longer than a row, so that the rest is not tokenized only to be cut off.

Tokenizing a megabyte takes seconds and half a gigabyte. How far a token depends on the text after it differs between
tokenizers (until the end of its word, of its line, or in theory of the text). So this is looked at: a beginning will do
if it gives the same tokens as one that is `MARGIN` characters shorter; otherwise a longer one is tried, and in the end
the whole text. The margin is a prime number: where tokens repeat with a period, as in a single letter a million times,
the two are in different places of it.
"""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

MARGIN = 10_007
CHARACTERS_A_TOKEN = 16
GROWTH = 4

# The ids of a text without special tokens.
IdsOf = Callable[[str], list[int]]


def beginning(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int) -> str:
    """Return a beginning of the text with the same first `tokens` tokens, or the whole text if it is not far longer."""
    return _beginning(lambda part: _ids(tokenizer, part), text, tokens)


def beginnings_of_pair(
    tokenizer: PreTrainedTokenizerBase, first: str, second: str, tokens: int, special_tokens: int
) -> tuple[str, str]:
    """Return beginnings of both texts of a pair that give the same row of `tokens` tokens, of which some are special.

    Which text is cut at which token depends on which has more tokens: exactly one of two long texts has one token more
    if the number of tokens is odd, so in that case both are whole.
    """
    parts = beginning(tokenizer, first, tokens), beginning(tokenizer, second, tokens)
    is_cut = len(parts[0]) < len(first), len(parts[1]) < len(second)
    if all(is_cut):
        return parts if (tokens - special_tokens) % 2 == 0 else (first, second)
    if any(is_cut):
        cut, whole = parts if is_cut[0] else parts[::-1]
        # A text of fewer tokens than this beginning has fewer than the whole of the other one, too.
        if len(_ids(tokenizer, whole)) >= len(_ids(tokenizer, cut)):
            return first, second
    return parts


def beginning_of_words(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], tokens: int) -> list[str]:
    """Return the first words, and of them the beginnings, with the same first `tokens` tokens.

    Words are tokenized one by one, so a word's tokens do not depend on those after it.
    """

    def ids_of(some: Sequence[str]) -> list[int]:
        return _ids(tokenizer, some, is_split_into_words=True)

    count = CHARACTERS_A_TOKEN * tokens
    while True:
        if count * 2 >= len(words):
            count = len(words)
        first = [_beginning(lambda part: ids_of([part]), word, tokens) for word in words[:count]]
        if count == len(words):
            return first
        if len(ids_of(first)) >= tokens:
            return first
        count *= GROWTH


def _beginning(ids_of: IdsOf, text: str, tokens: int) -> str:
    size = CHARACTERS_A_TOKEN * tokens + 2 * MARGIN
    while size * 2 < len(text):
        kept = ids_of(text[:size])[:tokens]
        if len(kept) == tokens and ids_of(text[: size - MARGIN])[:tokens] == kept:
            return text[:size]
        size *= GROWTH
    return text


def _ids(tokenizer: PreTrainedTokenizerBase, text: str | Sequence[str], **options: bool) -> list[int]:
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **options,
    )
    return list(encoded["input_ids"])
