"""Codecs: what is encoded comes back within the error that each codec states, by torch and by polars alike."""

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.dump.codecs import Codec, Dense, Float16Vectors, TopK

# The last is float32's own: log-softmax over values of this size.
TOP_K_RELATIVE, TOP_K_ABSOLUTE, FLOAT32 = 2**-11, 2**-25, 2e-6
SMALLEST = torch.finfo(torch.float16).min

seeds = st.integers(0, 2**31)
offsets = st.sampled_from([0.0, -50.0, 1e3, -3e4, 1e6])
scales = st.sampled_from([1e-3, 1.0, 8.0, 60.0])
quick = settings(max_examples=60, deadline=None)


def random_logits(seed: int, positions: int, classes: int, scale: float, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(positions, classes, generator=generator) * scale + offset


def stored(codec: Codec, encoded: dict[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """The columns as a shard keeps them: numpy, in the type that the codec declares."""
    return {column.name: encoded[column.name].numpy().astype(column.dtype) for column in codec.columns}


def back(columns: dict[str, np.ndarray[Any, Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values.astype(np.int64) if "ids" in name else values) for name, values in
            columns.items()}  # fmt: skip


def frame(codec: Codec, columns: dict[str, np.ndarray[Any, Any]]) -> pl.DataFrame:
    """The columns as polars sees them in a shard: numbers, or one binary a position."""
    return pl.DataFrame(
        {
            column.name: pl.Series(
                columns[column.name]
                if column.width == 1
                else [np.ascontiguousarray(row).tobytes() for row in columns[column.name]],
                dtype=None if column.width == 1 else pl.Binary,
            )
            for column in codec.columns
        }
    )


@quick
@given(seeds, st.integers(0, 5), st.integers(1, 40), st.data(), scales, offsets)
def test_top_k_is_within_its_stated_error(
    seed: int, positions: int, vocabulary: int, data: st.DataObject, scale: float, offset: float
) -> None:
    k = data.draw(st.integers(1, vocabulary))
    codec = TopK(name="d", k=k, vocabulary=vocabulary)
    logits = random_logits(seed, positions, vocabulary, scale, offset)
    found = codec.decode(back(stored(codec, codec.encode(logits))))
    exact = logits.double().log_softmax(-1)
    assert found.ids_NK.shape == found.log_probs_NK.shape == (positions, k)
    # The ids are those of the k largest (ties may fall either way), in falling order.
    assert torch.equal(logits.gather(-1, found.ids_NK), logits.sort(-1, descending=True).values[:, :k])
    assert all(len(set(row)) == k for row in found.ids_NK.tolist())
    wanted = exact.gather(-1, found.ids_NK)
    allowed = (wanted.abs() * TOP_K_RELATIVE).clamp(min=TOP_K_ABSOLUTE) + FLOAT32
    assert ((found.log_probs_NK - wanted).abs() <= allowed).all()
    tail = exact.scatter(-1, found.ids_NK, -torch.inf).logsumexp(-1)
    # Below e**-87 float32 has no normal numbers, and the mass may as well be nothing.
    visible = tail > -85
    assert (found.tail_N[visible] - tail[visible]).abs().le(1e-5).all()
    assert (found.tail_N[~visible] < -80).all()


@quick
@given(seeds, st.integers(1, 5), st.integers(1, 40), scales, offsets)
def test_dense_is_exact(seed: int, positions: int, classes: int, scale: float, offset: float) -> None:
    codec = Dense(name="d", classes=classes)
    logits = random_logits(seed, positions, classes, scale, offset)
    assert torch.equal(codec.decode(back(stored(codec, codec.encode(logits)))).logits_NV, logits)


@quick
@given(seeds, st.integers(0, 5), st.integers(1, 40), st.sampled_from([1e-8, 1e-4, 1.0, 1e4]))
def test_float16_vectors_are_within_their_stated_error(seed: int, tokens: int, width: int, scale: float) -> None:
    codec = Float16Vectors(name="hidden.1", layer=1, width=width)
    vectors = random_logits(seed, tokens, width, scale)
    found = codec.decode(back(stored(codec, codec.encode(vectors))))
    assert found.shape == (tokens, width)
    assert ((found - vectors).abs() <= (vectors.abs() * 2**-11).clamp(min=2**-25)).all()


@quick
@given(seeds, st.integers(1, 5), st.integers(1, 12), st.data(), scales)
def test_polars_and_torch_decode_alike(
    seed: int, positions: int, classes: int, data: st.DataObject, scale: float
) -> None:
    logits = random_logits(seed, positions, classes, scale)
    top_k = TopK(name="d", k=data.draw(st.integers(1, classes)), vocabulary=classes)
    columns = stored(top_k, top_k.encode(logits))
    decoded = top_k.decode(back(columns))
    seen = frame(top_k, columns).select(ids=top_k.ids_expr(), log_probs=top_k.log_probs_expr(), tail=top_k.tail_expr())
    assert seen["ids"].to_list() == decoded.ids_NK.tolist()
    assert seen["log_probs"].to_list() == decoded.log_probs_NK.double().tolist()
    assert seen["tail"].to_list() == decoded.tail_N.double().tolist()

    dense = Dense(name="d", classes=classes)
    seen = frame(dense, stored(dense, dense.encode(logits))).select(
        ids=dense.ids_expr(), log_probs=dense.log_probs_expr(), tail=dense.tail_expr()
    )
    assert seen["ids"].to_list() == [list(range(classes))] * positions
    np.testing.assert_allclose(seen["log_probs"].to_list(), logits.double().log_softmax(-1).numpy(), atol=1e-9)
    assert seen["tail"].to_list() == [-np.inf] * positions

    vectors = Float16Vectors(name="h", layer=0, width=classes)
    columns = stored(vectors, vectors.encode(logits))
    assert (
        frame(vectors, columns).select(v=vectors.vector_expr())["v"].to_list() == vectors.decode(back(columns)).tolist()
    )


def test_log_probabilities_too_small_for_float16_stay_finite_and_ordered() -> None:
    codec = TopK(name="d", k=3, vocabulary=4)
    found = codec.decode(back(stored(codec, codec.encode(torch.tensor([[0.0, -1e5, -torch.inf, -9e5]])))))
    assert found.ids_NK.tolist() == [[0, 1, 3]]
    assert found.log_probs_NK.tolist() == [[0.0, SMALLEST, SMALLEST]]


def test_a_confident_teachers_tail_is_not_rounded_away() -> None:
    """1 - p is 1e-12 here, far below what float32 can tell from 1."""
    logits = torch.full((1, 11), 0.0)
    logits[0, 3] = 30.0
    found = (codec := TopK(name="d", k=1, vocabulary=11)).decode(back(stored(codec, codec.encode(logits))))
    assert found.tail_N.item() == pytest.approx(np.log(10) - 30.0, abs=1e-5)


def test_all_kept_leaves_nothing_outside() -> None:
    codec = TopK(name="d", k=7, vocabulary=7)
    assert codec.encode(random_logits(0, 3, 7, 1.0))["d.tail"].tolist() == [-torch.inf] * 3


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_top_k_lets_no_broken_logit_pass_unseen(bad: float) -> None:
    """Whatever NaN or infinity is among the logits shows in the log-probabilities, where the annotator looks."""
    for at in range(5):
        logits = random_logits(0, 1, 5, 1.0)
        logits[0, at] = bad
        assert not TopK(name="d", k=2, vocabulary=5).encode(logits)["d.log_probs"].isfinite().all()


def test_columns_declare_what_is_stored() -> None:
    widths = {c.name: (c.dtype, c.width, c.bytes_per_position) for c in TopK(name="d", k=8, vocabulary=2**16).columns}
    assert widths == {"d.ids": ("uint16", 8, 16), "d.log_probs": ("float16", 8, 16), "d.tail": ("float32", 1, 4)}
    assert TopK(name="d", k=8, vocabulary=2**16 + 1).columns[0].dtype == "int32"
    assert [(c.name, c.dtype, c.width) for c in Dense(name="d", classes=3).columns] == [("d.logits", "float32", 3)]
    assert [(c.name, c.dtype, c.width) for c in Float16Vectors(name="hidden.2", layer=2, width=5).columns] == [
        ("hidden.2", "float16", 5)
    ]


def test_the_largest_id_survives_its_type() -> None:
    for vocabulary in (2**16, 2**16 + 1):
        codec = TopK(name="d", k=2, vocabulary=vocabulary)
        logits = torch.zeros(1, vocabulary)
        logits[0, [vocabulary - 1, vocabulary - 2]] = torch.tensor([9.0, 8.0])
        columns = stored(codec, codec.encode(logits))
        assert codec.decode(back(columns)).ids_NK.tolist() == [[vocabulary - 1, vocabulary - 2]]
        assert frame(codec, columns).select(codec.ids_expr()).item().to_list() == [vocabulary - 1, vocabulary - 2]
