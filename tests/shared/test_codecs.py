"""Codecs of distributions: what is encoded comes back within the error that each codec states, by torch and by polars
alike; what is drawn at random is unbiased, and depends on its position alone.

Shapes: N positions, V vocabulary or classes, K most that a position keeps.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from shared.dump.codecs import (
    Dense,
    DistributionCodec,
    Draws,
    NotFiniteError,
    Selection,
    Sparse,
    SparseTargets,
    Threshold,
    TopK,
    TopKFloat16,
    TopP,
    counts_of,
    position_keys,
    selection,
)
from shared.dump.codecs.uniforms import uniforms
from shared.dump.manifest import Manifest
from shared.dump.rowgroup import RowGroup, from_flat, to_flat
from shared.dump.shards import open_shard, read_row_group, shard_path, write_shard

# Each of a codec's columns by its name: an array, or `Lists`.
Columns = dict[str, Any]

# What float32 may add to a stated bound of p ** 0.4, and the band around a rule's boundary in which it may err.
NOISE, BAND = 2e-6, 1e-5

seeds = st.integers(0, 2**31)
offsets = st.sampled_from([0.0, -50.0, 1e3, -3e4, 1e6])
scales = st.sampled_from([0.0, 1e-3, 1.0, 8.0, 60.0])
quick = settings(max_examples=60, deadline=None)
thorough = settings(max_examples=250, deadline=None)

EVERY_RULE: tuple[Selection, ...] = (
    TopK(k=7),
    TopP(p=0.8, k=9),
    Threshold(threshold=0.03),
    Threshold(threshold=0.03, tail="mass"),
    Draws(draws=20),
)
EXACT_RULES = EVERY_RULE[:-1]


def random_logits(seed: int, positions: int, classes: int, scale: float = 2.0, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(positions, classes, generator=generator) * scale + offset


def keys_of(positions: int, seed: int = 0) -> Tensor:
    return position_keys(seed, torch.arange(positions), torch.zeros(positions, dtype=torch.int64))


def stored(codec: DistributionCodec, logits_NV: Tensor, keys_N: Tensor | None = None) -> Columns:
    """The columns as a shard keeps them: numpy, exactly of the type and width that the codec declares."""
    encoded = codec.encode(logits_NV, keys_of(len(logits_NV)) if keys_N is None else keys_N)
    lists = {counts_of(column.name) for column in codec.columns if column.is_list}
    assert set(encoded) == {column.name for column in codec.columns} | lists
    flat = {name: tensor.numpy() for name, tensor in encoded.items()}
    for column in codec.columns:
        assert flat[column.name].dtype == column.dtype
        assert not column.is_list or (flat[column.name] >= 0).all(), "any reader may divide an entry"
        if not column.is_list:
            assert flat[column.name].shape == (len(logits_NV),) + (() if column.width == 1 else (column.width,))
    return from_flat(codec.columns, flat)


def decoded(codec: DistributionCodec, columns: Columns) -> Any:
    return codec.decode({name: torch.from_numpy(array.copy()) for name, array in to_flat(columns).items()})


def round_trip(codec: DistributionCodec, logits_NV: Tensor, keys_N: Tensor | None = None) -> Any:
    return decoded(codec, stored(codec, logits_NV, keys_N))


def frame(codec: DistributionCodec, columns: Columns) -> pl.DataFrame:
    """The columns as polars sees them in a shard: one number, one list or one binary a position."""
    series = {}
    for column in codec.columns:
        values = columns[column.name]
        if column.is_list:
            rows = [values[index : index + 1].values.tolist() for index in range(len(values))]
            series[column.name] = pl.Series(rows, dtype=pl.List({"int32": pl.Int32, "int64": pl.Int64}[column.dtype]))
        elif column.width == 1:
            series[column.name] = pl.Series(values)
        else:
            series[column.name] = pl.Series([np.ascontiguousarray(row).tobytes() for row in values], dtype=pl.Binary)
    return pl.DataFrame(series)


def seen_by_polars(codec: DistributionCodec, raw: pl.DataFrame) -> list[tuple[list[int], list[float], float]]:
    """(ids, log-probabilities, tail) of each position."""
    seen = raw.select(ids=codec.ids_expr(), log_probs=codec.log_probs_expr(), tail=codec.tail_expr())
    assert seen.schema == {"ids": pl.List(pl.Int64), "log_probs": pl.List(pl.Float64), "tail": pl.Float64}
    return seen.rows()


# --- references, longhand ---------------------------------------------------------------------------------------------


def check_top(kept: list[int], p_V: np.ndarray) -> None:
    """That these are as many of the most probable ids (ties may fall either way)."""
    least = np.sort(p_V)[::-1][len(kept) - 1]
    assert all(p_V[index] >= least * (1 - BAND) for index in kept)
    assert set(np.flatnonzero(p_V > least * (1 + BAND))) <= set(kept)


def check_top_k(rule: TopK, exact: list[int], sampled: dict[int, float], p_V: np.ndarray, key: int) -> None:
    assert len(exact) == min(rule.k, len(p_V))
    assert not sampled
    check_top(exact, p_V)


def check_top_p(rule: TopP, exact: list[int], sampled: dict[int, float], p_V: np.ndarray, key: int) -> None:
    falling = np.sort(p_V)[::-1][: rule.k]
    before = np.cumsum(falling) - falling
    assert max(1, (before < rule.p - BAND).sum()) <= len(exact) <= (before < rule.p + BAND).sum()
    assert not sampled
    check_top(exact, p_V)


def check_threshold(rule: Threshold, exact: list[int], sampled: dict[int, float], p_V: np.ndarray, key: int) -> None:
    must = set(np.flatnonzero(p_V > rule.threshold * (1 + BAND)))
    may = set(np.flatnonzero(p_V > rule.threshold * (1 - BAND))) | set(np.flatnonzero(p_V > p_V.max() * (1 - BAND)))
    assert must <= set(exact) <= may
    assert exact
    if not rule.samples:
        assert not sampled
        return
    # The running sum of p / threshold over the others passes u, u + 1, u + 2, ... within the ids that are drawn.
    others_V = p_V.copy()
    others_V[exact] = 0
    running_V = np.cumsum(others_V) / rule.threshold
    noise = 1e-6 / rule.threshold
    u = uniforms(torch.tensor([key]), 1).item()
    marks = u + np.arange(len(sampled))
    for mark, index in zip(marks, sorted(sampled), strict=True):
        assert running_V[index] - others_V[index] / rule.threshold - noise <= mark <= running_V[index] + noise
        assert p_V[index] > 0
    assert u + len(sampled) >= running_V[-1] - noise
    assert all(weight == pytest.approx(rule.threshold, rel=1e-6) for weight in sampled.values())


def check_draws(rule: Draws, exact: list[int], sampled: dict[int, float], p_V: np.ndarray, key: int) -> None:
    assert not exact
    times = {index: weight * rule.draws for index, weight in sampled.items()}
    assert all(count == pytest.approx(round(count), rel=1e-5) and round(count) >= 1 for count in times.values())
    assert sum(map(round, times.values())) == rule.draws
    assert all(p_V[index] > 0 for index in sampled)
    running_V = np.cumsum(p_V)
    marks = uniforms(torch.tensor([key]), rule.draws)[0].numpy()
    unclear = sum(np.abs(running_V - mark).min() < 1e-6 for mark in marks)
    wanted = np.bincount(np.searchsorted(running_V, marks, side="right").clip(max=len(p_V) - 1), minlength=len(p_V))
    found = np.zeros(len(p_V))
    for index, count in times.items():
        found[index] = round(count)
    assert np.abs(found - wanted).sum() <= 2 * unclear


CHECKS: dict[type, Any] = {TopK: check_top_k, TopP: check_top_p, Threshold: check_threshold, Draws: check_draws}


def check_targets(codec: Sparse, logits_NV: Tensor, keys_N: Tensor, found: SparseTargets) -> None:
    """That decoded targets are what the codec states about these logits."""
    p_NV = logits_NV.double().softmax(-1)
    rule = codec.selection
    tail_levels = 255 if codec.levels <= 250 else 65_535
    assert (found.sampled_NK is not None) == codec.samples
    for index, p in enumerate(p_NV):
        log_probs_K = found.log_probs_NK[index]
        is_there_K = log_probs_K != -torch.inf
        is_sampled_K = torch.zeros_like(is_there_K) if found.sampled_NK is None else found.sampled_NK[index]
        assert not (is_sampled_K & ~is_there_K).any(), "a filling is not sampled"
        ids_K = found.ids_NK[index]
        every = ids_K[is_there_K].tolist()
        assert len(set(every)) == len(every)
        exact = ids_K[is_there_K & ~is_sampled_K]
        weights = log_probs_K.double().exp()
        sampled = dict(zip(ids_K[is_sampled_K].tolist(), weights[is_sampled_K].tolist(), strict=True))
        CHECKS[type(rule)](rule, exact.tolist(), sampled, p.numpy(), int(keys_N[index]))

        q, p_exact = weights[is_there_K & ~is_sampled_K], p[exact]
        bound = torch.where(p_exact >= p.max() * (1 - BAND), 1.5, 0.5) / codec.levels
        assert ((p_exact**0.4 - q**0.4).abs() <= bound + NOISE).all()
        if len(exact):
            assert p[found.argmax()[index]] >= p.max() * (1 - 1e-6), "the teacher's first choice is another"
        outside = p.clone().index_fill(0, exact, 0.0).sum().item()
        assert abs(outside**0.4 - found.tail_N[index].double().exp().item() ** 0.4) <= 0.5 / tail_levels + NOISE

    assert tuple(found.log_sums_N) == codec.temperatures
    for temperature, sums_N in found.log_sums_N.items():
        wanted_N = (logits_NV.double().log_softmax(-1) / temperature).logsumexp(-1)
        assert ((sums_N - wanted_N).abs() <= wanted_N.abs() * (2**-11 + 1e-6) + 2**-25 + 2e-6 / temperature).all()


# --- sparse: the bounds -----------------------------------------------------------------------------------------------


@st.composite
def rules(draw: st.DrawFn, vocabulary: int) -> Selection:
    k = draw(st.integers(1, vocabulary + 2))
    choices: list[Selection] = [
        TopK(k=k),
        TopP(p=draw(st.sampled_from([1e-6, 0.3, 0.9, 0.999, 1.0])), k=k),
        Threshold(
            threshold=draw(st.sampled_from([1e-3, 0.02, 0.1, 0.5, 0.99])),
            tail=draw(st.sampled_from(["sample", "mass"])),
        ),
        Draws(draws=draw(st.sampled_from([1, 2, 50, 255]))),
    ]
    return draw(st.sampled_from(choices))


@st.composite
def codecs(draw: st.DrawFn, vocabulary: int) -> Sparse:
    return Sparse(
        name="d",
        selection=draw(rules(vocabulary)),
        vocabulary=vocabulary,
        levels=draw(st.sampled_from([8, 130, 250, 251, 4000, 65_000])),
        temperatures=draw(st.sampled_from([(), (2.0,), (0.5, 2.0, 4.0)])),
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
    codec = Sparse(name="d", selection=TopK(k=2), vocabulary=50, temperatures=(0.5, 2.0))
    near, far = (round_trip(codec, random_logits(3, 4, 50).round() + offset) for offset in (0.0, 1e6))
    for temperature in (0.5, 2.0):
        assert torch.equal(near.log_sums_N[temperature], far.log_sums_N[temperature])


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
    with pytest.raises(ValidationError, match="temperatures are positive numbers other than 1"):
        Sparse(name="d", selection=TopK(k=2), vocabulary=9, temperatures=(2.0, temperature))


# --- polars -----------------------------------------------------------------------------------------------------------


def check_polars(codec: Sparse, rows: list[tuple[list[int], list[float], float]], found: SparseTargets) -> None:
    """That polars sees the same ids and numbers as torch, most probable first and sampled ids last."""
    assert len(rows) == len(found.ids_NK)
    for index, (ids, log_probs, tail) in enumerate(rows):
        is_there_K = found.log_probs_NK[index] > -torch.inf
        wanted = dict(
            zip(found.ids_NK[index][is_there_K].tolist(), found.log_probs_NK[index][is_there_K].tolist(), strict=True)
        )
        assert dict(zip(ids, log_probs, strict=True)) == pytest.approx(wanted, rel=1e-6, abs=1e-6)
        exact = found.exact()
        known = exact.ids_NK[index][exact.log_probs_NK[index] > -torch.inf].tolist()
        assert set(ids[: len(known)]) == set(known)
        assert log_probs[: len(known)] == sorted(log_probs[: len(known)], reverse=True)
        assert log_probs[len(known) :] == sorted(log_probs[len(known) :], reverse=True)
        assert tail == pytest.approx(found.tail_N[index].item(), rel=1e-6, abs=1e-6)


@quick
@given(seeds, st.integers(1, 5), st.integers(1, 40), st.data(), scales)
def test_polars_and_torch_decode_sparse_alike(
    seed: int, positions: int, vocabulary: int, data: st.DataObject, scale: float
) -> None:
    codec = data.draw(codecs(vocabulary))
    columns = stored(codec, random_logits(seed, positions, vocabulary, scale))
    check_polars(codec, seen_by_polars(codec, frame(codec, columns)), decoded(codec, columns))


def bare_manifest(codec: Sparse) -> Manifest:
    """One that knows the codec and nothing else: enough to write and read shards."""
    facts: dict[str, Any] = {"format_version": 1, "task": "none", "recorded": "next-token", "gold": "none"}
    return Manifest.model_construct(**facts, pairs=False, signals=(codec,))


def group_of(columns: Columns, rows: range, row_positions: Sequence[int]) -> RowGroup:
    """Rows of so many positions each (and one token more), all tokens zero."""
    positions = np.concatenate([[0], np.cumsum(row_positions)])
    tokens = positions + np.arange(len(positions))
    return RowGroup(
        rows=np.asarray(rows),
        token_offsets=tokens,
        input_ids=np.zeros(tokens[-1], np.int32),
        token_type_ids=None,
        position_offsets=positions,
        positions=np.zeros(positions[-1], np.int32),
        labels=np.zeros(positions[-1], np.int32),
        columns=columns,
    )


@pytest.mark.parametrize("levels", [130, 65_000])
@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.describe())
def test_sparse_comes_back_from_a_shard_by_torch_and_by_polars(rule: Selection, levels: int, tmp_path: Path) -> None:
    """Two row groups; rows without positions at the start, in the middle and at the end."""
    codec = Sparse(name="d", selection=rule, vocabulary=200, levels=levels, temperatures=(0.5, 2.0))
    lengths = [[0, 3, 0, 0, 4, 1], [0, 2, 0]]
    logits = random_logits(5, 10, 200)
    columns = stored(codec, logits)
    groups = [
        group_of({name: values[:8] for name, values in columns.items()}, range(6), lengths[0]),
        group_of({name: values[8:] for name, values in columns.items()}, range(6, 9), lengths[1]),
    ]
    manifest, names = bare_manifest(codec), [column.name for column in codec.columns]
    shard_path(tmp_path, 0).parent.mkdir()
    write_shard(tmp_path, 0, manifest, iter(groups))

    wanted = decoded(codec, columns)
    for index, (start, stop) in enumerate([(0, 8), (8, 10)]):
        read = read_row_group(manifest, open_shard(tmp_path, 0), index, names)
        found = decoded(codec, read.columns)
        check_targets(codec, logits[start:stop], keys_of(10)[start:stop], found)
    raw = pl.scan_parquet(shard_path(tmp_path, 0)).select(names)
    exploded = raw.filter(pl.col(names[0]).list.len() > 0).explode(names).collect()
    check_polars(codec, seen_by_polars(codec, exploded), wanted)


# --- what is drawn at random ------------------------------------------------------------------------------------------

MANY = 20_000


def repeated(logits_V: Tensor, rule: Selection, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(weights [MANY, V] of one distribution under many keys, its probabilities)."""
    codec = Sparse(name="d", selection=rule, vocabulary=len(logits_V), levels=65_000)
    found = round_trip(codec, logits_V.expand(MANY, -1).contiguous(), keys_of(MANY, seed))
    weights_NV = torch.zeros(MANY, len(logits_V), dtype=torch.float64)
    weights_NV.scatter_add_(1, found.ids_NK, found.log_probs_NK.double().exp())
    return weights_NV, logits_V.double().softmax(-1)


def z_scores(values_NV: Tensor, means_V: Tensor, variances_V: Tensor) -> Tensor:
    return (values_NV.mean(0) - means_V) / (variances_V / len(values_NV)).sqrt()


def test_threshold_sampling_is_unbiased_with_the_variance_of_a_bernoulli() -> None:
    t = 0.04
    weights_NV, p = repeated(random_logits(7, 1, 60, 1.5)[0], Threshold(threshold=t))
    is_exact = p > t
    assert 3 < is_exact.sum() < 20
    assert (weights_NV[:, is_exact] - p[is_exact]).abs().max() < 1e-4
    sampled_NV, p = weights_NV[:, ~is_exact], p[~is_exact]
    assert ((sampled_NV == 0) | ((sampled_NV - t).abs() < 1e-7)).all()
    z = z_scores(sampled_NV, p, p * (t - p))
    assert z.abs().max() < 4
    assert 0.3 < z.square().mean() < 2
    assert (sampled_NV.var(0) / (p * (t - p)) - 1).abs().max() < 0.2


def test_threshold_sampling_keeps_as_many_ids_as_the_tail_has_thresholds() -> None:
    """Systematic, not independent: the number of sampled ids is that of the tail / t, rounded down or up."""
    t = 0.04
    for seed in range(3):
        logits = random_logits(seed, 1, 60, 0.5 + seed)[0]
        weights_NV, p = repeated(logits, Threshold(threshold=t), seed)
        is_exact = (p > t) | (p == p.max())
        tail = p[~is_exact].sum().item()
        counts_N = (weights_NV[:, ~is_exact] > 0).sum(1)
        assert set(counts_N.tolist()) == {math.floor(tail / t), math.ceil(tail / t)}
        assert counts_N.double().mean().item() == pytest.approx(tail / t, abs=0.02)
        assert (weights_NV.sum(1) - 1).abs().max() <= t


def test_draws_are_unbiased_with_the_variance_of_independent_draws() -> None:
    weights_NV, p = repeated(random_logits(8, 1, 60, 1.5)[0], Draws(draws=16))
    assert (weights_NV.sum(1) - 1).abs().max() < 1e-5
    z = z_scores(weights_NV, p, p * (1 - p) / 16)
    assert z.abs().max() < 4
    assert 0.3 < z.square().mean() < 2
    # The rarest ids come so seldom that their variance is hardly known.
    common = p > 0.005
    assert (weights_NV.var(0) / (p * (1 - p) / 16) - 1).abs()[common].max() < 0.1


@pytest.mark.parametrize("u", [0.0, 2**-53, 1 - 1e-8, 1 - 2**-53])
def test_the_first_and_the_last_random_numbers_draw_no_id_without_mass(
    u: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded to float32, they are the very ends of the running sum."""
    monkeypatch.setattr(selection, "uniforms", lambda keys_N, count: torch.full((len(keys_N), count), u).double())
    logits = random_logits(4, 5, 40)
    logits[:, [0, 1, 38, 39]] = -torch.inf
    logits[:, 2] = 9.0
    for rule in (Draws(draws=3), Threshold(threshold=1e-4), Threshold(threshold=0.5)):
        found = round_trip(Sparse(name="d", selection=rule, vocabulary=40), logits)
        is_there = found.log_probs_NK > -torch.inf
        assert found.ids_NK[is_there].min() >= 2
        assert found.ids_NK[is_there].max() <= 37
        assert found.sampled_NK is not None
        if isinstance(rule, Threshold):
            assert not (found.ids_NK[found.sampled_NK] == 2).any(), "an exact id has nothing left to sample"


@pytest.mark.parametrize("u", [1 - 1e-8, 1 - 3e-8])
def test_no_id_is_sampled_twice_where_every_one_is_as_probable_as_the_threshold(
    u: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding alone decides then which id a mark falls on."""
    monkeypatch.setattr(selection, "uniforms", lambda keys_N, count: torch.full((len(keys_N), count), u).double())
    for rest in (0.132, 0.3, 0.7, 0.9):
        logits = torch.full((1, 2000), math.log(rest))
        logits[0, 0] = 0.0
        softmax = selection.Softmax.of(logits)
        threshold = float(softmax.mass_NV[0, 1].double() / softmax.total_N1.double())
        ids = Threshold(threshold=threshold).select(softmax, keys_of(1)).ids_E.tolist()
        assert len(ids) > 1900
        assert len(set(ids)) == len(ids)


def test_a_tail_of_a_whole_number_of_thresholds_is_sampled_that_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last mark lies at the very end of the running sum, where there is no id left."""
    monkeypatch.setattr(selection, "uniforms", lambda keys_N, count: torch.zeros(len(keys_N), count).double())
    found = round_trip(Sparse(name="d", selection=Threshold(threshold=2 / 11), vocabulary=11), torch.zeros(1, 11))
    assert found.sampled_NK is not None
    assert found.sampled_NK.sum() == 5
    assert found.ids_NK.max() < 11


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.describe())
def test_what_is_kept_depends_on_the_position_and_not_on_its_batch(rule: Selection) -> None:
    codec = Sparse(name="d", selection=rule, vocabulary=300, temperatures=(2.0, 4.0))
    logits, keys = random_logits(9, 12, 300), keys_of(12)

    def pieces(columns: Columns) -> list[list[Any]]:
        count = len(columns[codec.columns[0].name])
        flat = [to_flat({name: values[at : at + 1] for name, values in columns.items()}) for at in range(count)]
        return [[array.tolist() for array in piece.values()] for piece in flat]

    together = pieces(stored(codec, logits, keys))
    alone = [pieces(stored(codec, logits[at : at + 1], keys[at : at + 1]))[0] for at in range(12)]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    permuted = pieces(stored(codec, logits[order], keys[order]))
    assert together == alone
    assert [together[at] for at in order.tolist()] == permuted
    others = pieces(stored(codec, logits, keys_of(12, seed=1)))
    assert (others != together) == codec.samples


WORD = 2**64


def split_mix_64(state: int) -> int:
    """The output of Steele, Lea and Flood's generator after `state`, in plain whole numbers."""
    value = (state + 0x9E3779B97F4A7C15) % WORD
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % WORD
    return value ^ (value >> 31)


@quick
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), st.integers(0, 4))
def test_uniforms_are_the_numbers_of_split_mix_64(keys: list[int], count: int) -> None:
    found = uniforms(torch.tensor(keys, dtype=torch.int64), count)
    steps = [(step + 1) * 0x9E3779B97F4A7C15 for step in range(count)]
    wanted = [[(split_mix_64((key + step) % WORD) >> 11) / 2**53 for step in steps] for key in keys]
    assert found.dtype == torch.float64
    assert found.shape == (len(keys), count)
    assert found.tolist() == wanted


@quick
@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**20))
def test_a_positions_key_mixes_seed_row_and_position(seed: int, row: int, position: int) -> None:
    found = position_keys(seed, torch.tensor([row]), torch.tensor([position]))
    wanted = split_mix_64((split_mix_64((split_mix_64(seed) + row) % WORD) + position) % WORD)
    assert found.item() % WORD == wanted


def test_no_two_positions_share_a_key() -> None:
    rows, positions = (grid.flatten() for grid in torch.meshgrid(torch.arange(100), torch.arange(200), indexing="ij"))
    keys = torch.cat([position_keys(seed, rows, positions) for seed in range(3)])
    assert len(keys.unique()) == 3 * 100 * 200


def test_uniforms_are_uniform_and_unrelated_over_rows_positions_and_seeds() -> None:
    count, zeros = 5000, torch.zeros(5000, dtype=torch.int64)
    numbers = torch.arange(count)
    by_rows = uniforms(position_keys(0, numbers, zeros), 2)
    by_positions = uniforms(position_keys(0, zeros, numbers), 1)[:, 0]
    by_seeds = torch.cat([uniforms(position_keys(seed, zeros[:1], zeros[:1]), 1)[0] for seed in range(count)])
    within = uniforms(position_keys(3, zeros[:1], zeros[:1]), count)[0]
    for sample in (by_rows[:, 0], by_rows[:, 1], by_positions, by_seeds, within):
        assert stats.kstest(sample.numpy(), "uniform").pvalue > 0.01
        assert abs(np.corrcoef(sample[1:], sample[:-1])[0, 1]) < 3 / math.sqrt(count)
    for one, other in ((by_rows[:, 0], by_rows[:, 1]), (by_rows[:, 0], by_positions), (by_positions, by_seeds)):
        assert abs(np.corrcoef(one[1:], other[1:])[0, 1]) < 3 / math.sqrt(count)


# --- dense ------------------------------------------------------------------------------------------------------------


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


# --- what the earliest version wrote ----------------------------------------------------------------------------------


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
