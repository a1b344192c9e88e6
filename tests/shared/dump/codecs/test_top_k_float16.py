"""What the earliest version wrote is still read."""

import math

import numpy as np
import pytest
import torch

from shared.dump.codecs import TopKFloat16
from tests.shared.round_trips import decoded, frame, keys_of, random_logits, seen_by_polars


@pytest.mark.parametrize(("vocabulary", "dtype"), [(2**16, "uint16"), (2**16 + 1, "int32")])
def test_the_first_top_k_codec_is_read_and_not_written(vocabulary: int, dtype: str) -> None:
    codec = TopKFloat16(name="d", k=2, vocabulary=vocabulary)
    ids = np.array([[vocabulary - 1, 0], [7, vocabulary - 2]])
    log_probs, tail = np.array([[-0.25, -2.0], [-1.5, -1.5]]), np.array([-math.inf, -0.75])
    columns = {"d.ids": ids.astype(dtype), "d.log_probs": log_probs.astype("float16"), "d.tail": tail.astype("float32")}
    assert [(column.name, column.dtype, column.width) for column in codec.columns] == [
        ("d.ids", dtype, 2),
        ("d.log_probs", "float16", 2),
        ("d.tail", "float32", 1),
    ]
    found = decoded(codec, columns)
    assert (found.ids_NK.tolist(), found.log_probs_NK.tolist(), found.tail_N.tolist()) == (
        ids.tolist(),
        log_probs.tolist(),
        tail.tolist(),
    )
    assert found.ids_NK.dtype == torch.int64
    assert seen_by_polars(codec, frame(codec, columns)) == [
        (ids[row].tolist(), log_probs[row].tolist(), tail[row]) for row in range(2)
    ]
    with pytest.raises(NotImplementedError):
        codec.encode(random_logits(0, 1, 4), keys_of(1))
