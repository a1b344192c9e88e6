"""encoder: no predictions; vectors of tokens and embeddings of rows are recorded."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shared.errors import UsageError
from shared.text.columns import ScoredColumns
from shared.text.examples import SCORED_PAIRS, Columns, Example
from shared.text.tasks.base import Task, encode, token_types
from shared.text.tokenized import TokenizedRow, Tokenizing


class Encoder(Task):
    """Rows are texts or pairs."""

    name = "encoder"
    auto_class = "AutoModel"
    architectures = ("Model",)
    layouts = {None: "none"}  # noqa: RUF012
    has_embeddings = True
    # The pooler's output is not recorded, and many checkpoints lack the pooler.
    optional_weights = ("pooler",)

    def scored_columns(self, names: ScoredColumns) -> Columns:
        """The columns of pairs of texts with a score."""
        columns = super().scored_columns(names)
        if columns.pair is None:
            raise UsageError(
                "embeddings are scored on pairs of texts: name the columns of both (--text-column and --pair-column, "
                "or text_column and pair_column in a recipe)."
            )
        return replace(columns, label=names.score_column, label_required=True, shape=SCORED_PAIRS)

    def tokenize(self, how: Tokenizing, examples: Sequence[Example], first_row: int) -> list[TokenizedRow]:
        encoded = encode(how, examples)
        nothing = np.zeros(0, np.int32)
        return [
            TokenizedRow(np.asarray(ids, np.int32), token_types(encoded, index), nothing, nothing)
            for index, ids in enumerate(encoded["input_ids"])
        ]
