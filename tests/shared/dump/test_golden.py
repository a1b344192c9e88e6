"""Golden dumps: what earlier versions wrote is read today as it was read then. tests/golden/make.py makes new ones."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from shared import Dump
from shared.dump.integrity.receipts import shard_path
from shared.dump.rowgroup import to_flat
from shared.dump.shards import open_shard, read_row_group

GOLDEN = Path(__file__).parents[2] / "golden"
MAKER = runpy.run_path(str(GOLDEN / "make.py"))
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/manifest.json"))


def close(wanted: Any) -> Any:
    """Equal up to the last digits of a float, which depend on the platform (its matrix products, for an exact dump)."""
    if isinstance(wanted, dict):
        return {key: close(value) for key, value in wanted.items()}
    if isinstance(wanted, list):
        is_numeric = bool(wanted) and all(isinstance(value, float) for value in wanted)
        return pytest.approx(wanted, rel=1e-6, abs=3e-6) if is_numeric else [close(value) for value in wanted]
    return pytest.approx(wanted, rel=1e-6, abs=3e-6) if isinstance(wanted, float) else wanted


def expected(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "expected.json").read_text(encoding="utf-8"))


def check_reads_as_expected(folder: Path) -> None:
    dump, wanted = Dump(folder), expected(folder)
    dump.require_complete()
    assert dump.verify() == []
    found = MAKER["contents"](dump)
    assert found["rows"] == wanted["rows"]
    # Later versions may see more columns than there were then.
    columns = wanted["positions"][0].keys()
    assert [{name: row[name] for name in columns} for row in found["positions"]] == close(wanted["positions"])
    assert found["mixtures"] == close(wanted.get("mixtures", []))
    for name in dump.manifest.tensor_files:
        assert found[name] == close(wanted[name])
    assert found["vectors"].keys() == wanted["vectors"].keys()
    for name, vectors in wanted["vectors"].items():
        assert found["vectors"][name] == close(vectors)
        lengths = sum(len(ids) for _, ids in wanted["rows"])
        assert dump.vectors(name).select(pl.len()).collect().item() == lengths


def check_trains_on_what_polars_sees(folder: Path) -> None:
    """The trainer's way, flat arrays and torch, to the same numbers as expected.json holds."""
    dump, wanted = Dump(folder), expected(folder)
    codecs = [*dump.manifest.vectors.values(), dump.distribution]
    names = [column.name for codec in codecs for column in codec.columns]
    seen = [seen_by_polars(row) for row in wanted["positions"]]
    found: list[tuple[int, list[dict[Any, float]]]] = []
    vectors: dict[str, list[tuple[int, Any]]] = {name: [] for name in dump.manifest.vectors}
    for shard, receipt in dump.receipts.items():
        file = open_shard(shard_path(dump.path, shard), receipt)
        for index in range(file.num_row_groups):
            group = read_row_group(dump.manifest, file, index, names)
            columns = {name: torch.from_numpy(np.array(array)) for name, array in to_flat(group.columns).items()}
            targets: Any = dump.distribution.decode(columns)
            positions = [as_dict(targets, position) for position in range(len(group.positions))]
            for row, number in enumerate(group.rows.tolist()):
                found.append((number, positions[group.position_offsets[row] : group.position_offsets[row + 1]]))
                part = slice(group.token_offsets[row], group.token_offsets[row + 1])
                for name, codec in dump.manifest.vectors.items():
                    vectors[name].append((number, codec.decode(columns)[part].tolist()))
    found.sort(key=lambda row: row[0])
    decoded = [position for _, row in found for position in row]
    assert [only_seen(*pair) for pair in zip(decoded, seen, strict=True)] == [
        pytest.approx(position, rel=1e-5, abs=1e-6) for position in seen
    ]
    for name, rows in wanted["vectors"].items():
        decoded = [vector for _, row in sorted(vectors[name], key=lambda row: row[0]) for vector in row]
        np.testing.assert_allclose(decoded[: len(rows)], [vector for _, _, vector in rows], rtol=1e-5, atol=1e-6)


def seen_by_polars(row: dict[str, Any]) -> dict[Any, float]:
    """Log-probability by id, and the tail; of a question's window by start and end, as if they were two classes."""
    if "ids" in row:
        return dict(zip(row["ids"], row["log_probs"], strict=True)) | {"tail": row["tail"]}
    logits = np.asarray([row["start_logit"], row["end_logit"]])
    return dict(enumerate((logits - np.logaddexp.reduce(logits)).tolist())) | {"tail": -np.inf}


def only_seen(position: dict[Any, float], seen: dict[Any, float]) -> dict[Any, float]:
    """A position with those of its ids that people are shown, and the others' mass in the tail."""
    shown = {key: value for key, value in position.items() if key in seen}
    hidden = [value for key, value in position.items() if key not in seen]
    return shown | {"tail": np.logaddexp.reduce([position["tail"], *hidden])} if hidden else shown


def as_dict(targets: Any, position: int) -> dict[Any, float]:
    """Log-probability by id, and the tail."""
    if hasattr(targets, "logits_NV"):
        return dict(enumerate(targets.logits_NV[position].log_softmax(-1).tolist())) | {"tail": -np.inf}
    is_there_K = targets.log_probs_NK[position] > -torch.inf
    ids, log_probs = targets.ids_NK[position][is_there_K].tolist(), targets.log_probs_NK[position][is_there_K].tolist()
    return dict(zip(ids, log_probs, strict=True)) | {"tail": targets.tail_N[position].item()}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_dump_of_an_earlier_version_reads_as_it_did_then(folder: Path) -> None:
    check_reads_as_expected(folder)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_dump_of_an_earlier_version_trains_on_the_same_numbers(folder: Path) -> None:
    check_trains_on_what_polars_sees(folder)


def test_the_dumps_of_the_first_version_are_all_here() -> None:
    assert {"first-dense", "first-masked", "first-tagging", "first-top-k"} <= {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("kind", MAKER["KINDS"])
def test_a_golden_dump_can_be_made_of_todays_format(kind: str, tmp_path: Path) -> None:
    """The same bytes twice, and nothing of the machine that made it."""
    one, other = tmp_path / "one", tmp_path / "other"
    MAKER["make"](one, kind)
    check_reads_as_expected(one)
    check_trains_on_what_polars_sees(one)
    MAKER["make"](other, kind)
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
        assert str(tmp_path).encode() not in (one / file).read_bytes()
