"""A manifest of unknown origin can claim anything, with checksums that fit: what makes no sense is refused at once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shared import Dump, DumpError
from shared.dump.integrity.verification import verify
from shared.storage import Folder
from tests.hand_edits import sign

GOLDEN = Path(__file__).parents[2] / "golden"
CLASSES, TOP_K, THRESHOLD, EXACT = "first-dense", "sixth-top-k", "second-threshold", "third-exact"
MIXTURES = "seventh-mixtures"
HUGE = 10**12

# The dump, the path of the key in its manifest, the bad value, and words of the refusal.
CLAIMS: dict[str, tuple[str, str, Any, str]] = {
    "rows, negative": (TOP_K, "corpus.rows", -1, "corpus.rows = -1"),
    "rows, endless": (TOP_K, "corpus.rows", 10**30, "corpus.rows"),
    "rows, infinite": (TOP_K, "corpus.rows", float("inf"), "corpus.rows"),
    "labelled rows": (TOP_K, "corpus.labelled_rows", 99, "labelled_rows = 99"),
    "rows of a shard, none": (TOP_K, "options.shard_rows", 0, "options.shard_rows = 0"),
    "rows of a shard, negative": (TOP_K, "options.shard_rows", -4, "options.shard_rows = -4"),
    "max_length 0": (TOP_K, "options.max_length", 0, "options.max_length = 0"),
    "max_length -1": (TOP_K, "options.max_length", -1, "options.max_length = -1"),
    "stride": (TOP_K, "options.stride", -1, "options.stride = -1"),
    "bytes per token": (TOP_K, "options.bytes_per_token", float("nan"), "options.bytes_per_token"),
    "vocabulary, endless": (TOP_K, "vocabulary", HUGE, "vocabulary"),
    "vocabulary, smaller": (TOP_K, "vocabulary", 100, "320 classes, but there are a vocabulary of 100"),
    "vocabulary, none": (TOP_K, "vocabulary", 0, "vocabulary = 0"),
    "tokenizer, endless": (TOP_K, "tokenizer.size", HUGE, "too few for the 1,000,000,000,000 entries"),
    "tokenizer, negative": (TOP_K, "tokenizer.size", -1, "tokenizer.size = -1"),
    "label names, one more": (CLASSES, "label_names", ["a", "b", "c", "d"], "3 classes, but there are 4 label names"),
    "label names, one less": (CLASSES, "label_names", ["a", "b"], "3 classes, but there are 2 label names"),
    "label names, equal": (CLASSES, "label_names", ["a", "b", "a"], "a label name occurs twice"),
    "label names, none": (CLASSES, "label_names", None, "3 classes, but there are a vocabulary of 128"),
    "classes, endless": (CLASSES, "signals.0.classes", HUGE, "classes"),
    "width, endless": (CLASSES, "signals.1.width", HUGE, "width"),
    "width, none": (CLASSES, "signals.1.width", 0, "width = 0"),
    "layer, negative": (TOP_K, "signals.1.layer", -1, "layer = -1"),
    "layer, endless": (TOP_K, "signals.1.layer", HUGE, "layer"),
    "levels, infinite": (THRESHOLD, "signals.0.levels", float("inf"), "levels"),
    "levels, none": (THRESHOLD, "signals.0.levels", 0, "levels = 0"),
    "threshold, NaN": (THRESHOLD, "signals.0.selection.threshold", float("nan"), "threshold"),
    "threshold 1": (THRESHOLD, "signals.0.selection.threshold", 1.0, "threshold"),
    "temperature, infinite": (THRESHOLD, "signals.0.temperatures", [float("inf")], "temperatures"),
    "step of logits, NaN": (EXACT, "signals.0.after", {"step": "scale", "value": float("nan")}, "value"),
    "step of logits, 0": (EXACT, "signals.0.after", {"step": "divisor", "value": 0.0}, "value"),
    "draws, none": (MIXTURES, "signals.1.codec.draws", 0, "draws = 0"),
    "draws, endless": (MIXTURES, "signals.1.codec.draws", HUGE, "draws"),
    "alpha, NaN": (MIXTURES, "signals.1.codec.alpha", float("nan"), "alpha"),
    "classes of mixtures": (MIXTURES, "signals.1.codec.classes", 3, "3 classes, but there are 2 label names"),
    "mixtures of tokens": (MIXTURES, "signals.1.per", "token", "mixtures of rows are recorded for each row"),
}  # fmt: skip


def edited(name: str, folder: Path, key: str, value: Any) -> Path:
    """Return a copy of a golden dump with another value in its manifest, signed."""
    copy = Path(shutil.copytree(GOLDEN / name, folder / "dump"))
    file = copy / "manifest.json"
    content: Any = json.loads(file.read_text())
    place, *path = content, *key.split(".")
    for part in path[:-1]:
        place = place[int(part) if isinstance(place, list) else part]
    place[path[-1]] = value
    file.write_text(json.dumps(content))
    sign(copy)
    return copy


@pytest.mark.parametrize("case", CLAIMS)
def test_a_manifest_that_claims_nonsense_is_refused_when_it_is_opened(case: str, tmp_path: Path) -> None:
    name, key, value, words = CLAIMS[case]
    folder = edited(name, tmp_path, key, value)
    with pytest.raises(DumpError) as refusal:
        Dump(folder)
    assert words in str(refusal.value)
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    try:
        damages = verify(Folder.of(folder))
    except DumpError as error:
        damages = [str(error)]
    assert (damages and words in damages[0]) or key == "tokenizer.size"


@pytest.mark.parametrize("text", ['{"format_version": ' + "9" * 5000 + "}", "[" * 10_000 + "]" * 10_000, "7", "null"])
def test_a_manifest_beyond_the_limits_of_the_parser_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DumpError, match=r"manifest.json: "):
        Dump(tmp_path)


def test_a_dump_that_claims_endless_rows_is_described_without_counting_them(tmp_path: Path) -> None:
    folder = edited(TOP_K, tmp_path, "corpus.rows", HUGE)
    for name in ("00002.json", "00002.parquet"):
        (folder / "shards" / name).unlink()
    with pytest.raises(DumpError, match=r"249,999,999,998 of 250,000,000,000 shards are missing"):
        Dump(folder).require_complete()
    damages = verify(Folder.of(folder))
    assert len(damages) < 200
    assert any(damage.endswith("more shards are missing") for damage in damages)


@pytest.mark.parametrize(("key", "value"), [("corpus.rows", 4), ("corpus.rows", 7), ("options.shard_rows", 5)])
def test_rows_that_are_not_those_of_the_receipts_are_refused(key: str, value: int, tmp_path: Path) -> None:
    folder = edited(TOP_K, tmp_path, key, value)
    with pytest.raises(DumpError, match="by the manifest the"):
        Dump(folder).require_complete()
    assert verify(Folder.of(folder))


def test_ids_of_a_tokenizer_may_be_as_large_as_it_claims(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / TOP_K, tmp_path / "dump"))
    file = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["far away"] = 2**32 - 1
    file.write_text(json.dumps(content))
    sign(folder)
    assert len(Dump(folder).token_texts) == 320


@pytest.mark.parametrize("damage", ["missing", "empty", "a folder"])
def test_a_dump_without_its_tokenizer_is_refused(damage: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "first-top-k", tmp_path / "dump"))
    file = folder / "tokenizer" / "tokenizer.json"
    file.unlink()
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "a folder":
        file.mkdir()
    with pytest.raises(DumpError, match=r"tokenizer\.json: "):
        Dump(folder).positions().collect()
