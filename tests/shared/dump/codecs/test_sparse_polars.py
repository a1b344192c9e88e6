"""The sparse codec read by polars: the same ids and numbers as by torch, from memory and from a shard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.dump.codecs import Selection, Sparse, SparseTargets, TopK
from shared.dump.integrity.receipts import shard_path
from shared.dump.layouts import LAYOUTS
from shared.dump.manifest import Manifest
from shared.dump.rowgroup import RowGroup
from shared.dump.shards import open_shard, read_row_group, write_shard
from shared.dump.signals import Signal
from shared.storage import Folder
from tests.shared.references import check_targets
from tests.shared.round_trips import (
    EVERY_RULE,
    Columns,
    codecs,
    decoded,
    frame,
    keys_of,
    quick,
    random_logits,
    scales,
    seeds,
    seen_by_polars,
    stored,
)


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
    facts: dict[str, Any] = {"format_version": 1, "task": "none", "layout": LAYOUTS["next-token"], "labelled": True}
    return Manifest.model_construct(**facts, pairs=False, signals=(Signal(site="d", per="position", codec=codec),))


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
@pytest.mark.parametrize(
    ("rule", "in_planes"),
    [*((rule, False) for rule in EVERY_RULE), (TopK(k=7), True), (TopK(k=1), True), (TopK(k=300), True)],
    ids=str,
)
def test_sparse_comes_back_from_a_shard_by_torch_and_by_polars(
    rule: Selection, in_planes: bool, levels: int, tmp_path: Path
) -> None:
    """Two row groups; rows without positions at the start, in the middle and at the end."""
    codec = Sparse(
        name="d", selection=rule, vocabulary=200, levels=levels, temperatures=(0.5, 2.0), in_planes=in_planes
    )
    lengths = [[0, 3, 0, 0, 4, 1], [0, 2, 0]]
    logits = random_logits(5, 10, 200)
    columns = stored(codec, logits)
    groups = [
        group_of({name: values[:8] for name, values in columns.items()}, range(6), lengths[0]),
        group_of({name: values[8:] for name, values in columns.items()}, range(6, 9), lengths[1]),
    ]
    manifest, names = bare_manifest(codec), [column.name for column in codec.columns]
    folder = Folder.of(tmp_path)
    (folder / "shards").make()
    receipt = write_shard(folder, 0, manifest, iter(groups))

    wanted = decoded(codec, columns)
    for index, (start, stop) in enumerate([(0, 8), (8, 10)]):
        read = read_row_group(manifest, open_shard(shard_path(folder, 0), receipt), index, names)
        found = decoded(codec, read.columns)
        check_targets(codec, logits[start:stop], keys_of(10)[start:stop], found)
    raw = pl.scan_parquet(shard_path(folder, 0).local).select(names)
    exploded = raw.filter(pl.col(names[0]).list.len() > 0).explode(names).collect()
    check_polars(codec, seen_by_polars(codec, exploded), wanted)
