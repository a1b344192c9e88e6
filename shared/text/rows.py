"""Put tokenized rows into one flat row group, the form in which shards are written and training data is read."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared.dump.rowgroup import RowGroup
from shared.text.tokenized import TokenizedRow


def row_group(rows: Sequence[TokenizedRow], numbers: Sequence[int]) -> RowGroup:
    """The rows as one row group; `numbers` are their numbers in the corpus. It has no columns of codecs yet."""
    questions = [row.question for row in rows if row.question is not None]
    types = [row.token_type_ids for row in rows if row.token_type_ids is not None]
    return RowGroup(
        rows=np.asarray(numbers, np.int64),
        token_offsets=_offsets([len(row.input_ids) for row in rows]),
        input_ids=np.concatenate([row.input_ids for row in rows]),
        token_type_ids=np.concatenate(types).astype(np.uint8) if types else None,
        position_offsets=_offsets([len(row.positions) for row in rows]),
        positions=np.concatenate([row.positions for row in rows]),
        labels=np.concatenate([row.labels for row in rows]),
        columns={name: np.concatenate([row.columns[name] for row in rows]) for name in rows[0].columns},
        questions=np.asarray(questions, np.int64) if questions else None,
    )


def _offsets(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
