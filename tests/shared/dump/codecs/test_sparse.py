"""The sparse codec: what is encoded comes back within the error that it states, and it declares what it stores."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.dump.codecs import Dense, DistributionCodec, Draws, NotFiniteError, Selection, Sparse, Threshold, TopK, TopP
from tests.shared.references import check_targets
from tests.shared.round_trips import (
    EVERY_RULE,
    EXACT_RULES,
    codecs,
    decoded,
    frame,
    keys_of,
    offsets,
    random_logits,
    round_trip,
    scales,
    seeds,
    seen_by_polars,
    stored,
    thorough,
)


@thorough
@given(seeds, st.integers(0, 5), st.integers(1, 40), st.data(), scales, offsets, st.sampled_from([0.0, 0.3, 1.0]))
def test_sparse_is_within_its_stated_error_and_keeps_the_ids_of_its_rule(
    seed: int, positions: int, vocabulary: int, data: st.DataObject, scale: float, offset: float, ruled_out: float
) -> None:
    codec = data.draw(codecs(vocabulary))
    logits = random_logits(seed, positions, vocabulary, scale, offset)
    is_out = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed)) < ruled_out
    is_out[:, seed % vocabulary] = False
    logits = logits.masked_fill(is_out, -torch.inf)
    keys = keys_of(positions, seed)
    check_targets(codec, logits, keys, round_trip(codec, logits, keys))


@pytest.mark.parametrize("levels", [130, 65_000])
@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.describe())
def test_sparse_is_within_its_stated_error_for_a_real_vocabulary(rule: Selection, levels: int) -> None:
    vocabulary = 30_011
    logits = torch.cat([random_logits(1, 4, vocabulary, scale) for scale in (0.01, 2.0, 4.0)])
    codec = Sparse(name="d", selection=rule, vocabulary=vocabulary, levels=levels, temperatures=(0.5, 2.0))
    check_targets(codec, logits, keys_of(12), round_trip(codec, logits))


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.describe())
def test_sparse_holds_very_confident_and_very_flat_distributions(rule: Selection) -> None:
    """One id with all mass but 1e-20; all mass on one id and the others ruled out; every id the same."""
    confident, certain, flat = torch.zeros(1, 300), torch.full((1, 300), -torch.inf), torch.full((1, 300), 1e6)
    confident[0, 299], certain[0, 0] = 52.0, -3e4
    logits = torch.cat([confident, certain, flat])
    for levels in (8, 130, 65_000):
        codec = Sparse(name="d", selection=rule, vocabulary=300, levels=levels, temperatures=(0.5, 4.0))
        found = round_trip(codec, logits)
        check_targets(codec, logits, keys_of(3), found)
        assert found.argmax()[:2].tolist() == [299, 0]


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.describe())
@pytest.mark.parametrize(
    ("vocabulary", "levels", "dtype"),
    [
        (2**15, 65_000, "int32"),
        (2**15 + 1, 65_000, "int64"),
        (2**23, 250, "int32"),
        (2**23 + 1, 250, "int64"),
    ],
)
def test_entries_hold_the_largest_vocabulary_of_their_type(
    rule: Selection, vocabulary: int, levels: int, dtype: str
) -> None:
    """Nearly all mass on the last id and a little on the first ones, so that gaps are as wide as they can be."""
    logits = torch.full((1, vocabulary), -60.0)
    logits[0, -1], logits[0, :3] = 4.0, torch.tensor([0.0, 0.1, 0.2])
    codec = Sparse(name="d", selection=rule, vocabulary=vocabulary, levels=levels)
    assert codec.columns[0].dtype == dtype
    columns = stored(codec, logits)
    found = decoded(codec, columns)
    check_targets(codec, logits, keys_of(1), found)
    assert vocabulary - 1 in found.ids_NK[0].tolist()
    ((ids, _, _),) = seen_by_polars(codec, frame(codec, columns))
    assert set(ids) == set(found.ids_NK[0, found.log_probs_NK[0] > -torch.inf].tolist())


@pytest.mark.parametrize("levels", [8, 130, 65_000])
@pytest.mark.parametrize("rule", EXACT_RULES, ids=lambda rule: rule.describe())
def test_the_teachers_first_choice_survives_a_rival_that_rounds_to_the_same(rule: Selection, levels: int) -> None:
    codec = Sparse(name="d", selection=rule, vocabulary=12, levels=levels)
    logits = torch.zeros(2, 12)
    logits[0, [8, 3]], logits[1, [3, 8]] = torch.tensor([3.00001, 3.0]), torch.tensor([3.00001, 3.0])
    columns = stored(codec, logits)
    assert decoded(codec, columns).argmax().tolist() == [8, 3]
    assert [ids[0] for ids, _, _ in seen_by_polars(codec, frame(codec, columns))] == [8, 3]


def test_the_most_probable_id_is_exact_even_below_the_threshold() -> None:
    """Below it on its own the loss would have no class of the teacher's to agree with."""
    logits = torch.zeros(1, 10)
    logits[0, 6] = 0.1
    for tail in ("sample", "mass"):
        codec = Sparse(name="d", selection=Threshold(threshold=0.5, tail=tail), vocabulary=10)
        found = round_trip(codec, logits).exact()
        assert found.ids_NK[found.log_probs_NK > -torch.inf].tolist() == [6]


def test_the_whole_vocabulary_kept_leaves_nothing_outside() -> None:
    for k in (7, 9):
        codec = Sparse(name="d", selection=TopK(k=k), vocabulary=7)
        columns = stored(codec, random_logits(0, 3, 7))
        assert decoded(codec, columns).ids_NK.tolist() == [list(range(7))] * 3
        assert decoded(codec, columns).tail_N.tolist() == [-torch.inf] * 3
        assert [tail for _, _, tail in seen_by_polars(codec, frame(codec, columns))] == [-np.inf] * 3


def test_log_sums_survive_logits_of_any_size() -> None:
    """Next to a logit of 1e6 float32 has no digits left for a log-sum-exp."""
    codec = Sparse(name="d", selection=TopK(k=2), vocabulary=50, temperatures=(0.5, 2.0, 3.0))
    near, far = (round_trip(codec, random_logits(3, 4, 50).round() + offset) for offset in (0.0, 1e6))
    for temperature in (0.5, 2.0, 3.0):
        assert torch.equal(near.log_sums_N[temperature], far.log_sums_N[temperature])


@thorough
@given(seeds, st.integers(1, 5), st.integers(1, 300), scales, offsets, st.sampled_from([0.0, 0.3, 1.0]))
def test_the_entropy_is_that_of_the_whole_distribution(
    seed: int, positions: int, vocabulary: int, scale: float, offset: float, ruled_out: float
) -> None:
    logits = random_logits(seed, positions, vocabulary, scale, offset)
    is_out = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed)) < ruled_out
    is_out[:, seed % vocabulary] = False
    logits = logits.masked_fill(is_out, -torch.inf)
    codec = Sparse(name="d", selection=TopK(k=1), vocabulary=vocabulary, entropy=True)
    exact = torch.special.entr(logits.double().softmax(-1)).sum(-1)
    columns = stored(codec, logits)
    np.testing.assert_allclose(columns["d.entropy"].astype(np.float64), exact, rtol=2**-11, atol=1e-6)
    shown = frame(codec, columns).select(codec.entropy_expr().alias("entropy"))["entropy"].to_numpy()
    np.testing.assert_array_equal(shown, columns["d.entropy"].astype(np.float64))


# --- what cannot be encoded -------------------------------------------------------------------------------------------

EVERY_CODEC = (
    Dense(name="d", classes=40),
    *(Sparse(name="d", selection=rule, vocabulary=40) for rule in EVERY_RULE),
)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("codec", EVERY_CODEC, ids=lambda codec: codec.describe())
def test_a_broken_logit_is_refused_with_the_first_position_that_has_one(codec: DistributionCodec, bad: float) -> None:
    for at in (0, 17, 39):
        logits = random_logits(0, 6, 40)
        logits[4, at] = logits[3, at] = bad
        with pytest.raises(NotFiniteError, match="position 3") as caught:
            codec.encode(logits, keys_of(6))
        assert caught.value.position == 3


@pytest.mark.parametrize("codec", EVERY_CODEC[1:], ids=lambda codec: codec.describe())
def test_a_position_with_every_id_ruled_out_is_refused(codec: DistributionCodec) -> None:
    logits = random_logits(0, 3, 40)
    logits[1] = -torch.inf
    with pytest.raises(NotFiniteError, match="position 1"):
        codec.encode(logits, keys_of(3))


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1.0, math.inf, math.nan])
def test_temperatures_that_say_nothing_are_refused(temperature: float) -> None:
    with pytest.raises(ValidationError, match="temperatures"):
        Sparse(name="d", selection=TopK(k=2), vocabulary=9, temperatures=(2.0, temperature))


# --- what is declared -------------------------------------------------------------------------------------------------


def declared(codec: DistributionCodec) -> list[tuple[str, str, int | None]]:
    return [(column.name, column.dtype, column.width) for column in codec.columns]


def test_columns_declare_what_is_stored() -> None:
    assert declared(Dense(name="d", classes=3)) == [("d.logits", "float32", 3)]
    entries, tail, floor = ("d.entries", "int32", None), ("d.tail", "uint8", 1), ("d.floor", "uint8", 1)
    for rule in EVERY_RULE:
        expected = [entries, tail, floor] if isinstance(rule, TopK | TopP) else [entries, tail]
        assert declared(Sparse(name="d", selection=rule, vocabulary=50)) == expected
    fine = Sparse(name="d", selection=TopK(k=2), vocabulary=50, levels=251, temperatures=(0.5, 2.0))
    assert declared(fine) == [entries, ("d.tail", "uint16", 1), ("d.floor", "uint16", 1), ("d.log_sums", "float16", 2)]
    one = Sparse(name="d", selection=Draws(draws=3), vocabulary=50, levels=250, temperatures=(2.0,))
    assert declared(one) == [entries, tail, ("d.log_sums", "float16", 1)]
    for vocabulary, levels, count in ((50, 130, 2), (256, 130, 2), (257, 130, 3), (152_064, 130, 4), (152_064, 999, 5)):
        planes = Sparse(name="d", selection=TopK(k=9), vocabulary=vocabulary, levels=levels, in_planes=True)
        assert declared(planes)[:-2] == [(f"d.entries_{plane}", "uint8", 9) for plane in range(count)]
        assert planes.bytes_per_position == 9 * count + 2 * (1 if levels == 130 else 2)


@pytest.mark.parametrize("rule", [rule for rule in EVERY_RULE if not isinstance(rule, TopK)], ids=str)
def test_planes_are_for_rules_that_keep_as_many_ids_everywhere(rule: Selection) -> None:
    with pytest.raises(ValidationError, match="same number of ids at every position"):
        Sparse(name="d", selection=rule, vocabulary=50, in_planes=True)


def test_bytes_a_position_count_the_ids_that_are_expected() -> None:
    """By which row groups are cut."""
    assert Sparse(name="d", selection=TopK(k=10), vocabulary=50).bytes_per_position == 10 * 4 + 2
    assert Sparse(name="d", selection=Threshold(threshold=0.01), vocabulary=50).bytes_per_position == 50 * 4 + 1
    assert Sparse(name="d", selection=Draws(draws=3), vocabulary=2**24).bytes_per_position == 3 * 8 + 1


def test_a_codec_knows_whether_it_samples_and_whether_any_id_is_exact() -> None:
    for rule, samples, exact in zip(
        EVERY_RULE, (False, False, True, False, True), (True, True, True, True, False), strict=True
    ):
        codec = Sparse(name="d", selection=rule, vocabulary=50)
        assert (codec.samples, codec.has_exact_ids) == (samples, exact)
