"""Which ids are kept, where the vocabulary has many blocks.

Shapes: N positions, V vocabulary.
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shared.dump.codecs import Draws, NotFiniteError, Selection, Sparse, Threshold, TopK, TopP, sparse
from shared.dump.codecs.selection.softmax import Softmax
from shared.dump.rowgroup import to_flat
from tests.shared.references import check_targets
from tests.shared.round_trips import (
    EVERY_RULE,
    Columns,
    keys_of,
    offsets,
    quick,
    random_logits,
    round_trip,
    scales,
    seeds,
    stored,
    thorough,
)


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


def awkward_logits(draw: st.DrawFn, most: int = 700) -> Tensor:
    """Float32 logits of a few positions and some blocks: with ties, classes ruled out, and any size and spread."""
    positions, vocabulary = draw(st.integers(0, 4)), draw(st.integers(1, most))
    logits = random_logits(draw(seeds), positions, vocabulary, draw(scales), draw(offsets))
    if draw(st.booleans()):
        logits = logits.bfloat16().float()
    generator = torch.Generator().manual_seed(draw(seeds))
    is_out = torch.rand(logits.shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.99, 1.0]))
    is_out[:, draw(st.integers(0, vocabulary - 1))] = False
    return logits.masked_fill(is_out, -torch.inf)


@quick
@given(st.data(), st.integers(1, 6))
def test_every_rule_keeps_what_it_states_where_there_are_many_blocks(data: st.DataObject, k: int) -> None:
    logits = data.draw(st.composite(awkward_logits)())
    count, vocabulary = logits.shape
    rules = (TopK(k=k), TopP(p=0.9, k=k), Threshold(threshold=0.01), Threshold(threshold=0.2), Draws(draws=20))
    for rule in (*rules, Threshold(threshold=0.01, tail="mass")):
        codec = Sparse(name="d", selection=rule, vocabulary=vocabulary, levels=65_000, temperatures=(0.5, 3.0))
        check_targets(codec, logits, keys_of(count), round_trip(codec, logits))


@thorough
@given(st.data(), st.integers(1, 900))
def test_top_k_are_the_largest_logits_and_the_smaller_ids_among_equals(data: st.DataObject, k: int) -> None:
    logits = data.draw(st.composite(awkward_logits)(900))
    kept = TopK(k=k).select(Softmax.of(logits), keys_of(len(logits)))
    wanted = (-logits).sort(dim=-1, stable=True).indices[:, :k].sort(-1).values
    assert kept.ids_E.tolist() == wanted.flatten().tolist()
    assert kept.counts_N.tolist() == kept.exact_N.tolist() == [wanted.shape[1]] * len(logits)


@thorough
@given(st.data(), st.sampled_from([TopK(k=3), TopP(p=0.7, k=4), Threshold(threshold=0.01, tail="mass")]))
def test_log_probabilities_and_tail_are_those_of_float64(data: st.DataObject, rule: Selection) -> None:
    logits = data.draw(st.composite(awkward_logits)())
    kept = rule.select(Softmax.of(logits), keys_of(len(logits)))
    wanted_NV = logits.double().log_softmax(-1)
    owners_E = torch.repeat_interleave(kept.counts_N)
    torch.testing.assert_close(kept.log_probs_E.double(), wanted_NV[owners_E, kept.ids_E], rtol=1e-6, atol=2e-6)
    wanted_NV[owners_E, kept.ids_E] = -torch.inf
    # A logarithm is rounded to 24 bits; below -80 float32 runs out of exponents.
    found_N, wanted_N = kept.tail_N.double().clamp(min=-80), wanted_NV.logsumexp(-1).clamp(min=-80)
    torch.testing.assert_close(found_N, wanted_N, rtol=2**-24, atol=3e-6)


def test_a_confident_teachers_tail_survives_beside_its_first_choice_in_one_block() -> None:
    """1 - the kept mass would be 0 in float32 and float64 alike."""
    logits = torch.full((1, 200), -60.0)
    logits[0, 130] = 0.0
    for rule in (TopK(k=1), TopP(p=0.5, k=5), Threshold(threshold=0.01), Threshold(threshold=0.01, tail="mass")):
        kept = rule.select(Softmax.of(logits), keys_of(1))
        assert kept.ids_E.tolist() == [130]
        assert kept.tail_N.item() == pytest.approx(-60 + math.log(199), abs=1e-5)


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.describe())
def test_a_slice_is_encoded_run_by_run(rule: Selection, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Sparse(name="d", selection=rule, vocabulary=300, temperatures=(2.0, 4.0))
    logits, keys = random_logits(9, 7, 300), keys_of(7)
    at_once = codec.encode(logits, keys)
    monkeypatch.setattr(sparse, "_RUN_VALUES", 700)
    by_runs = codec.encode(logits, keys)
    assert by_runs.keys() == at_once.keys()
    assert all(torch.equal(by_runs[name], at_once[name]) for name in at_once)
    logits[5, 299] = torch.nan
    with pytest.raises(NotFiniteError, match="position 5"):
        codec.encode(logits, keys)


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.describe())
def test_encoding_leaves_the_logits_as_they_were(rule: Selection) -> None:
    logits = random_logits(3, 5, 300)
    before = logits.clone()
    Sparse(name="d", selection=rule, vocabulary=300, temperatures=(2.0,)).encode(logits, keys_of(5))
    assert torch.equal(logits, before)


def test_the_first_of_equal_ids_is_the_most_probable_one() -> None:
    logits = torch.zeros(1, 200)
    logits[0, [70, 75, 190]] = 0.5
    for rule in (TopK(k=1), TopP(p=1e-3, k=3), Threshold(threshold=0.5, tail="mass")):
        assert rule.select(Softmax.of(logits), keys_of(1)).ids_E.tolist() == [70]
