"""Layouts: what is packed is unpacked; which rows have gold labels; where in a batch what is asked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared import Dump, DumpError
from shared.dump.codecs import DenseTargets
from shared.dump.layouts import LAYOUTS, Layout
from shared.dump.layouts.spans import SpanIndex
from shared.dump.parquet.tables import shard_schema
from shared.dump.rowgroup import MISSING, RowGroup
from shared.dump.versions import FORMAT_VERSION
from tests.hand_edits import edit_manifest
from tests.older_versions import downgrade

# (tokens of a row, recorded ones, their gold labels), as a task would make them.
Rows = list[tuple[list[int], list[int], list[int]]]


@st.composite
def rows_of(draw: st.DrawFn, layout: str) -> Rows:
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        ids = draw(st.lists(st.integers(0, 9), max_size=6))
        follow = range(len(ids) - 1)
        if layout == "row":
            positions = [0]
        elif layout == "none":
            positions = []
        elif layout == "next-token":
            positions = list(follow)
        else:
            among = follow if layout == "listed-next-token" else range(len(ids))
            positions = sorted(draw(st.sets(st.sampled_from(among)))) if among else []
        if layout.endswith("next-token"):
            labels = [ids[position + 1] for position in positions]
        else:
            labels = draw(
                st.lists(st.sampled_from([MISSING, 0, 1, 2]), min_size=len(positions), max_size=len(positions))
            )
        rows.append((ids, positions, labels))
    return rows


def group_of(rows: Rows) -> RowGroup:
    def flat(part: int) -> np.ndarray:
        return np.asarray([value for row in rows for value in row[part]], np.int32)

    def offsets(part: int) -> np.ndarray:
        return np.cumsum([0, *(len(row[part]) for row in rows)])

    numbers = np.arange(len(rows))
    return RowGroup(numbers, offsets(0), flat(0), None, offsets(1), flat(1), flat(2), questions=numbers + 70)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data())
def test_what_is_packed_is_unpacked(name: str, labelled: bool, data: st.DataObject) -> None:
    layout, group = LAYOUTS[name], group_of(data.draw(rows_of(name)))
    packed = layout.pack(group, labelled)
    assert list(packed) == [field.name for field in layout.fields(labelled)]
    read = {field.name: packed[field.name] for field in layout.fields(labelled) if field.trains}
    found = layout.unpack(read, labelled, group.token_offsets, group.input_ids)
    assert found.offsets.tolist() == group.position_offsets.tolist()
    assert found.positions.tolist() == group.positions.tolist()
    is_known = labelled or name.endswith("next-token")
    assert found.labels.tolist() == (group.labels.tolist() if is_known else [MISSING] * len(group.labels))


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data())
def test_a_row_has_gold_where_one_of_its_labels_is_known(name: str, labelled: bool, data: st.DataObject) -> None:
    layout, rows = LAYOUTS[name], data.draw(rows_of(name))
    columns = layout.pack(group_of(rows), labelled)
    gold = {field.name: columns[field.name] for field in layout.fields(labelled) if field.holds_gold}
    found = layout.has_gold(gold, len(rows), labelled).tolist()
    if name.endswith("next-token") or name == "none":
        # The text itself is what a language model learns from.
        assert found == [labelled] * len(rows)
    else:
        assert found == [labelled and any(label != MISSING for label in labels) for _, _, labels in rows]


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if not layout.by_row and name != "spans"])
@given(data=st.data())
def test_in_a_batch_a_position_has_the_logits_of_its_token(name: str, data: st.DataObject) -> None:
    layout, rows = LAYOUTS[name], data.draw(rows_of(name))
    length = max(1, *(len(ids) for ids, _, _ in rows)) + 1
    index = layout.index(group_of(rows), length)
    logits = torch.arange(len(rows) * length * 2.0).reshape(len(rows), length, 2)
    expected = [logits[row, at].tolist() for row, (_, positions, _) in enumerate(rows) for at in positions]
    assert layout.distributions(logits, index).tolist() == expected
    assert index.labels.tolist() == [label for _, _, labels in rows for label in labels]
    assert index.counts.tolist() == [len(positions) for _, positions, _ in rows]


def test_of_a_row_the_logits_are_the_models() -> None:
    index = LAYOUTS["row"].index(group_of([([5, 6], [0], [2]), ([7], [0], [MISSING])]), 2)
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert LAYOUTS["row"].distributions(logits, index) is logits
    assert (index.labels.tolist(), index.counts.tolist()) == ([2, MISSING], [1, 1])


def test_spans_are_distributions_over_a_rows_own_positions() -> None:
    """Row 0 has three positions, its answer at the last two; row 1 one position, for both; row 2's is not known."""
    rows: Rows = [([9, 8, 7, 6], [0, 2, 3], [0, 1, 2]), ([9, 8], [1], [3]), ([9, 8, 7], [0, 1], [MISSING, MISSING])]
    layout, inf = LAYOUTS["spans"], float("inf")
    index = layout.index(group_of(rows), 4)
    assert isinstance(index, SpanIndex)
    assert index.labels.tolist() == [1, 2, 0, 0, MISSING, MISSING]
    assert index.counts.tolist() == [2, 2, 2]
    logits = torch.arange(24.0).reshape(3, 4, 2)
    expected = [[0, 4, 6], [1, 5, 7], [10, -inf, -inf], [11, -inf, -inf], [16, 18, -inf], [17, 19, -inf]]
    assert layout.distributions(logits, index).tolist() == expected
    recorded = DenseTargets(logits.flatten(0, 1)[index.positions])
    targets = layout.targets(recorded, index)
    assert isinstance(targets, DenseTargets)
    assert targets.logits_NV.tolist() == expected


# ---------------------------------------------------------------- the manifest names it


def test_a_layout_that_is_not_there_is_refused_with_those_that_are(make_dump: Any) -> None:
    out = make_dump("encoder")
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["layout"], manifest["labelled"]) == ("none", False)
    edit_manifest(out, layout="sideways")
    with pytest.raises(DumpError, match=r"'sideways'.*next-token, .*spans, row, none"):
        Dump(out)


@pytest.mark.parametrize("version", [1, FORMAT_VERSION - 1])
@pytest.mark.parametrize(
    "task", ["masked-lm", "sequence-classification", "token-classification", "question-answering", "encoder"]
)
def test_a_dump_of_an_earlier_version_goes_on_whatever_its_layout(
    task: str, version: int, make_dump: Any, make_teacher: Any, tmp_path: Path
) -> None:
    teacher, options = make_teacher(task), {"pooling": "none"}  # no earlier version has embeddings of rows
    out = make_dump(task, teacher=teacher, **options)
    wanted = {field.name: Dump(out).scan().collect()[field.name] for field in shard_schema(Dump(out).manifest)}
    file = out / "manifest.json"
    older = downgrade(out, version)
    assert ({"recorded", "gold"} <= older.keys()) == (version < 5)
    (out / "shards" / "00001.parquet").unlink()
    make_dump(task, teacher=teacher, out=out, **options)
    assert json.loads(file.read_text()) == older
    assert Dump(out).verify() == []
    found = Dump(out).scan().collect()
    for name, column in wanted.items():
        assert found[name].equals(column), name


def test_every_layout_says_what_it_is() -> None:
    for name, layout in LAYOUTS.items():
        assert isinstance(layout, Layout)
        assert (layout.name, bool(layout.place)) == (name, True)
