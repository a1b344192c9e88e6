"""The dense codec: exact, by torch and by polars."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.dump.codecs import Dense
from tests.shared.round_trips import (
    decoded,
    frame,
    offsets,
    quick,
    random_logits,
    scales,
    seeds,
    seen_by_polars,
    stored,
)


@quick
@given(seeds, st.integers(0, 5), st.integers(1, 40), scales, offsets)
def test_dense_is_exact(seed: int, positions: int, classes: int, scale: float, offset: float) -> None:
    codec = Dense(name="d", classes=classes)
    logits = random_logits(seed, positions, classes, scale, offset)
    logits[:, 1::3] = -torch.inf
    columns = stored(codec, logits)
    assert torch.equal(decoded(codec, columns).logits_NV, logits)


@quick
@given(seeds, st.integers(1, 5), st.integers(1, 12), scales)
def test_polars_sees_a_dense_signals_log_probabilities_in_class_order(
    seed: int, positions: int, classes: int, scale: float
) -> None:
    codec = Dense(name="d", classes=classes)
    logits = random_logits(seed, positions, classes, scale)
    rows = seen_by_polars(codec, frame(codec, stored(codec, logits)))
    assert [ids for ids, _, _ in rows] == [list(range(classes))] * positions
    np.testing.assert_allclose([row[1] for row in rows], logits.double().log_softmax(-1).numpy(), atol=1e-9)
    assert [tail for _, _, tail in rows] == [-np.inf] * positions
