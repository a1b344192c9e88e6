"""masked-lm: predict masked tokens, or all tokens, from the text around them.

Masking is that of BERT (Devlin et al. 2019, arXiv 1810.04805, section 3.1): 15% of the ordinary tokens and at least one
are chosen; 80% of them become the mask token, 10% a random token, and 10% stay. The draws depend on (seed, row) only.
"""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from shared.errors import UsageError
from shared.text.examples import Example
from shared.text.metrics import perplexity
from shared.text.predictions import Predictions
from shared.text.tasks.base import Task, encode, token_types
from shared.text.tokenized import TokenizedRow, Tokenizing

MASK_PROBABILITY = 0.15


class MaskedLM(Task):
    """Rows are texts or pairs; the text itself is the gold label."""

    name = "masked-lm"
    auto_class = "AutoModelForMaskedLM"
    architectures = ("ForMaskedLM",)
    layouts = {"masked": "listed", "all": "listed"}  # noqa: RUF012
    predicts_vocabulary = True
    # To predict a token that is there to be seen teaches nothing.
    loss_positions = "masked"

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().check_tokenizer(tokenizer)
        if tokenizer.mask_token_id is None:
            raise UsageError("masked-lm needs a tokenizer with a mask token; this one has none.")

    def tokenize(self, how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
        tokenizer = how.tokenizer
        encoded = encode(how, examples, return_special_tokens_mask=True)
        rows = []
        for index, ids in enumerate(encoded["input_ids"]):
            original = np.asarray(ids, np.int32)
            ordinary = np.flatnonzero(np.asarray(encoded["special_tokens_mask"][index]) == 0).astype(np.int32)
            if how.positions == "all":
                rows.append(TokenizedRow(original, token_types(encoded, index), ordinary, original[ordinary]))
                continue
            draw = np.random.default_rng([how.seed, first_row + index])
            count = min(len(ordinary), max(1, round(MASK_PROBABILITY * len(ordinary))))
            chosen = np.sort(draw.choice(ordinary, count, replace=False))
            fate = draw.random(count)
            masked = original.copy()
            masked[chosen[fate < 0.8]] = tokenizer.mask_token_id
            random_ones = chosen[(fate >= 0.8) & (fate < 0.9)]
            masked[random_ones] = draw.integers(0, tokenizer.vocab_size, len(random_ones))
            rows.append(TokenizedRow(masked, token_types(encoded, index), chosen, original[chosen]))
        return rows

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return perplexity(predictions)
