"""Typed signals: an entry of the manifest says all that a reader needs, and earlier versions' entries become such."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shared import Dump
from shared.dump.codecs import Dense, Int8Vectors
from shared.dump.manifest import read_manifest
from shared.dump.signals import SITES, Signal
from shared.dump.versions import FORMAT_VERSION, upgraded
from shared.errors import UsageError
from shared.storage import Folder
from tests.older_versions import downgrade, downgraded

GOLDEN = Path(__file__).parents[2] / "golden"


def test_an_entry_says_site_layer_and_per_and_its_codec_no_name() -> None:
    signal = Signal.of("hidden", 6, Int8Vectors(name="hidden.6", width=5))
    content = signal.model_dump(mode="json")
    assert content == {
        "site": "hidden",
        "layer": 6,
        "per": "token",
        "codec": {"codec": "int8", "width": 5, "outlier_channels": []},
    }
    assert Signal.model_validate(content) == signal
    assert [column.name for column in signal.columns] == ["hidden.6.codes", "hidden.6.scale"]
    assert Signal.of("distribution", None, Dense(name="distribution", classes=3)).per == "position"


def test_a_reader_needs_no_table_of_sites() -> None:
    """Whoever reads a dump may not have what recorded it."""
    content = {"site": "elsewhere", "per": "row", "codec": {"codec": "float16", "width": 2}}
    assert Signal.model_validate(content).name == "elsewhere"


def test_a_site_that_the_table_lacks_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(UsageError, match=f"unknown signal 'hiden'; there are: {', '.join(SITES)}"):
        Signal.of("hiden", 1, Int8Vectors(name="hiden.1", width=5))


def test_a_codec_with_another_name_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"the codec of the signal 'hidden\.5' has the name 'hidden\.6'"):
        Signal(site="hidden", layer=5, per="token", codec=Int8Vectors(name="hidden.6", width=5))


@pytest.mark.parametrize("folder", sorted(path.parent for path in GOLDEN.glob("*/manifest.json")), ids=lambda f: f.name)
def test_signals_of_earlier_versions_become_typed_entries(folder: Path) -> None:
    """And nothing of them is lost: they can be written as they were."""
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest = read_manifest(Folder.of(folder))
    assert manifest.format_version == content["format_version"]
    if content["format_version"] >= 5:
        return
    for signal, old in zip(manifest.signals, content["signals"], strict=True):
        assert signal.name == old["name"]
        assert signal.layer == old.get("layer")
        assert signal.per == ("position" if old["name"] == "distribution" else "token")
    again = downgraded(upgraded(content), content["format_version"])
    assert again["signals"] == content["signals"]


@pytest.mark.parametrize("signals", [None, 3, ["x"], [{"codec": "dense"}], [{"name": 5}]])
def test_signals_of_an_earlier_version_that_make_no_sense_are_left_to_the_manifests_checks(signals: Any) -> None:
    assert upgraded({"format_version": 4, "signals": signals}) == {"format_version": 4, "signals": signals}


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION))
def test_a_dump_of_an_earlier_version_is_continued_and_keeps_its_manifest(
    version: int, make_dump: Any, make_teacher: Any, texts: list[str]
) -> None:
    options: dict[str, Any] = {"teacher": make_teacher("causal-lm"), "data": texts[:40], "top_k": 3}
    options |= {"hidden": "1,2", "hidden_codec": "int8", "hidden_rank": 8, "relations": "last"}
    out = make_dump("causal-lm", **options)
    before = {file.name: file.read_bytes() for file in (out / "shards").glob("*.parquet")}
    file = out / "manifest.json"
    downgrade(out, version)
    written = file.read_bytes()
    (out / "shards" / "00001.parquet").unlink()
    make_dump("causal-lm", out=out, **options)
    assert file.read_bytes() == written
    dump = Dump(out)
    dump.require_complete()
    assert dump.verify() == []
    assert dump.manifest.format_version == version
    assert list(dump.manifest.vectors) == ["hidden.1", "hidden.2", "queries.2", "keys.2", "values.2"]
    after = {file.name: file.read_bytes() for file in (out / "shards").glob("*.parquet")}
    # What the shard says about itself is of the version that the dump has.
    assert {name for name in before if before[name] != after[name]} == {"00001.parquet"}
