"""encoder: no predictions; vectors of tokens and embeddings of rows are recorded."""

from collections.abc import Sequence

import numpy as np

from shared.text.examples import Example
from shared.text.tasks.base import Task, encode, token_types
from shared.text.tokenized import TokenizedRow, Tokenizing


class Encoder(Task):
    """Rows are texts or pairs."""

    name = "encoder"
    auto_class = "AutoModel"
    architectures = ()
    layouts = {None: "none"}  # noqa: RUF012
    has_embeddings = True
    # The pooler's output is not recorded, and many checkpoints lack the pooler.
    optional_weights = ("pooler",)

    def tokenize(self, how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
        encoded = encode(how, examples)
        nothing = np.zeros(0, np.int32)
        return [
            TokenizedRow(np.asarray(ids, np.int32), token_types(encoded, index), nothing, nothing)
            for index, ids in enumerate(encoded["input_ids"])
        ]
