"""What belongs together is known to belong together: no file of another dump, of another shard or edited by hand is
read as if it were this dump's."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from shared import Dump, DumpError
from shared.dump.integrity.checksums import checksums_of
from shared.dump.integrity.footers import footer_of
from shared.dump.integrity.receipts import read_receipts, shard_path
from shared.dump.integrity.sealing import seal
from shared.dump.integrity.verification import verify
from shared.dump.shards import open_shard
from shared.storage import Folder
from student_train.data.sources import DumpSource
from teacher_dump.annotate import annotate, prepare
from teacher_dump.request import Request
from tests.hand_edits import sign
from tests.older_versions import downgrade

TASK = "sequence-classification"
OPTIONS: dict[str, Any] = {"embeddings": True, "hidden": "last", "hidden_codec": "int8", "hidden_rank": 8}
Edit = Callable[[Any], object]


@pytest.fixture(scope="module")
def teacher(make_teacher: Any) -> Path:
    return make_teacher(TASK)


@pytest.fixture(scope="module")
def dump(make_dump: Any, teacher: Path) -> Path:
    """Four shards, word embeddings, and the constants of a codec; not to be changed."""
    return make_dump(TASK, teacher=teacher, **OPTIONS)


@pytest.fixture(scope="module")
def other(make_dump: Any, make_teacher: Any) -> Path:
    """The same rows by another teacher of the same sizes; its tokenizer names its padding otherwise."""
    folder = make_teacher(TASK, seed=1)
    file = folder / "tokenizer_config.json"
    file.write_text(file.read_text().replace('"padding_side": "right"', '"padding_side": "left"'))
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"model_max_length": 61}))
    return make_dump(TASK, teacher=folder, **OPTIONS)


@pytest.fixture(scope="module")
def language(make_dump: Any) -> Path:
    """A dump of a language model, whose codec has a threshold and levels; not to be changed."""
    return make_dump("causal-lm", threshold=0.05)


@pytest.fixture
def copied(dump: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dump, tmp_path / "dump"))


def in_turn(folder: Path, ways: dict[str, Callable[[Path], object]], name: str) -> None:
    """Every way of reading a dump ends with a sentence that names the file."""
    for way in ways.values():
        with pytest.raises(DumpError, match=name) as refusal:
            way(folder)
        assert "\n" not in str(refusal.value)
    try:
        damages = verify(Folder.of(folder))
    except DumpError as error:  # no manifest to verify the rest with
        damages = [str(error)]
    assert [damage for damage in damages if re.search(name, damage)]


def read_all(folder: Path) -> None:
    source = DumpSource(folder)
    columns = [column.name for signal in source.signals.values() for column in signal.columns]
    for group in range(len(source.group_rows)):
        source.load(group, columns)


WAYS: dict[str, Callable[[Path], object]] = {
    "a run": read_all,
    "positions": lambda folder: Dump(folder).positions().collect(),
    "scan": lambda folder: Dump(folder).scan().collect(),
    "vectors": lambda folder: Dump(folder).vectors("hidden.2").collect(),
}


# --- files of other dumps and other shards --------------------------------------------------------------------------


def swap(folder: Path, *suffixes: str) -> None:
    for suffix in suffixes:
        one, two = (folder / "shards" / f"0000{index}.{suffix}" for index in (0, 1))
        one.rename(folder / "held")
        two.rename(one)
        (folder / "held").rename(two)


def copy_shard(source: Path, of: int, target: Path, to: int, *suffixes: str) -> None:
    for suffix in suffixes:
        shutil.copy(source / "shards" / f"{of:05d}.{suffix}", target / "shards" / f"{to:05d}.{suffix}")


# What was done to a dump, with another at hand, and the file that is named.
STRANGERS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "two shards swapped with their receipts": (lambda d, _: swap(d, "parquet", "json"), r"0000[01]\.json"),
    "two shards swapped": (lambda d, _: swap(d, "parquet"), r"0000[01]\.parquet"),
    "two receipts swapped": (lambda d, _: swap(d, "json"), r"0000[01]\.json"),
    "a shard over another": (lambda d, _: copy_shard(d, 0, d, 1, "parquet"), r"00001\.parquet"),
    "a shard over another, with its receipt": (lambda d, _: copy_shard(d, 0, d, 1, "parquet", "json"), r"00001\.json"),
    "another teacher's shard": (lambda d, o: copy_shard(o, 2, d, 2, "parquet"), r"00002\.parquet"),
    "another teacher's shard, with its receipt": (lambda d, o: copy_shard(o, 2, d, 2, "parquet", "json"), r"2\.json"),
    "another teacher's receipt": (lambda d, o: copy_shard(o, 2, d, 2, "json"), r"00002\.json"),
    "another manifest": (lambda d, o: shutil.copy(o / "manifest.json", d), r"manifest\.json"),
    "another manifest, with its checksums": (
        lambda d, o: [shutil.copy(o / name, d) for name in ("manifest.json", "checksums.json")],
        r"tokenizer_config\.json",
    ),
    "everything but the shards": (
        lambda d, o: shutil.copytree(o, d, ignore=shutil.ignore_patterns("shards"), dirs_exist_ok=True),
        r"00000\.json",
    ),
    "another tokenizer": (
        lambda d, o: shutil.copytree(o / "tokenizer", d / "tokenizer", dirs_exist_ok=True),
        r"tokenizer_config\.json",
    ),
    "one more file for the tokenizer": (
        lambda d, _: (d / "tokenizer" / "added_tokens.json").write_text('{"[PAD]": 5}'),
        r"added_tokens\.json",
    ),
    "a file of the tokenizer less": (lambda d, _: (d / "tokenizer" / "tokenizer_config.json").unlink(), "r_config"),
    "constants of another dump": (
        lambda d, o: shutil.copy(o / "weights" / "hidden.2.safetensors", d / "weights"),
        r"hidden\.2\.safetensors",
    ),
    "no checksums": (lambda d, _: (d / "checksums.json").unlink(), r"checksums\.json: missing"),
    "checksums that are none": (lambda d, _: (d / "checksums.json").write_text("[]"), r"checksums\.json: damaged"),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_a_file_that_does_not_belong_is_named_by_every_reader(case: str, copied: Path, other: Path) -> None:
    done, name = STRANGERS[case]
    done(copied, other)
    in_turn(copied, WAYS, name)


@pytest.mark.parametrize("case", ["two shards swapped with their receipts", "a shard over another, with its receipt"])
def test_in_a_dump_of_an_earlier_version_the_rows_tell_shards_apart(case: str, copied: Path, other: Path) -> None:
    downgrade(copied, 5)
    STRANGERS[case][0](copied, other)
    in_turn(copied, WAYS, r"0000[01]\.parquet: .*rows")


def test_embeddings_of_another_dump_are_refused_where_they_are_read(copied: Path, other: Path) -> None:
    shutil.copy(other / "weights" / "embeddings.safetensors", copied / "weights")
    read = {
        "a run": lambda folder: DumpSource(folder).word_embeddings(),
        "Dump": lambda folder: Dump(folder).word_embeddings(),
    }
    in_turn(copied, read, r"embeddings\.safetensors")


def test_weights_do_not_change_with_their_file_after_the_check(copied: Path) -> None:
    """As they would if they were looked at through a memory map."""
    opened = Dump(copied)
    constants = opened.manifest.vectors["hidden.2"].constants()
    before = {"embeddings": opened.word_embeddings(), **constants}
    wanted = {name: values.clone() for name, values in before.items()}
    for file in (copied / "weights").iterdir():
        with open(file, "r+b") as opened_file:
            opened_file.seek(file.stat().st_size // 2)
            opened_file.write(b"\0" * (file.stat().st_size // 2))
    assert all(torch.equal(values, wanted[name]) for name, values in before.items())


def test_file_managers_hidden_files_and_an_edited_card_are_nobodys_business(copied: Path) -> None:
    (copied / "tokenizer" / ".DS_Store").write_bytes(b"\0")
    (copied / "README.md").write_text("# Ours\n")
    read_all(copied)
    assert verify(Folder.of(copied)) == []


def test_two_dumps_of_the_same_content_have_the_same_identity_and_others_another(
    dump: Path, other: Path, make_dump: Any, teacher: Path
) -> None:
    again = make_dump(TASK, teacher=teacher, **OPTIONS)
    identities = [Dump(folder).manifest.identity for folder in (dump, again, other)]
    assert identities[0] == identities[1] != identities[2]
    assert checksums_of(Folder.of(dump)) == checksums_of(Folder.of(again))


def test_anybody_sees_in_a_shard_where_it_belongs(dump: Path) -> None:
    facts = pl.read_parquet_metadata(dump / "shards" / "00002.parquet")
    assert facts["lectern.shard"] == f"{Dump(dump).manifest.identity}/00002"


# --- edits by hand --------------------------------------------------------------------------------------------------


def first_signal(manifest: Any) -> Any:
    return manifest["signals"][0]["codec"]


EDITS: dict[str, Edit] = {
    "label names reversed": lambda m: m.update(label_names=m["label_names"][::-1]),
    "one label name less": lambda m: m["label_names"].pop(),
    "label names doubled": lambda m: m.update(label_names=m["label_names"] * 2),
    "task": lambda m: m.update(task="token-classification"),
    "vocabulary 10": lambda m: m.update(vocabulary=10),
    "vocabulary 100": lambda m: m.update(vocabulary=100),
    "max_length -1": lambda m: m["options"].update(max_length=-1),
    "gold": lambda m: m.update(labelled=not m["labelled"]),
    "layer 99": lambda m: m["signals"][-1].update(layer=99),
    "rows fewer": lambda m: m["corpus"].update(rows=m["corpus"]["rows"] - 1),
    "fewer shards": lambda m: m["corpus"].update(rows=m["options"]["shard_rows"]),
    "another version": lambda m: m.update(format_version=5),
    "another version, no identity": lambda m: (m.update(format_version=5), m.pop("identity")),
    "another identity": lambda m: m.update(identity="0" * 32),
    "no identity": lambda m: m.pop("identity"),
}
EDITS_OF_A_LANGUAGE_MODEL: dict[str, Edit] = {
    "threshold": lambda m: first_signal(m)["selection"].update(threshold=0.5),
    "levels": lambda m: first_signal(m).update(levels=first_signal(m)["levels"] // 2),
    "codec's vocabulary": lambda m: first_signal(m).update(vocabulary=100),
}


@pytest.mark.parametrize("case", [*EDITS, *EDITS_OF_A_LANGUAGE_MODEL])
def test_a_manifest_edited_by_hand_is_refused(case: str, dump: Path, language: Path, tmp_path: Path) -> None:
    made = shutil.copytree(dump if case in EDITS else language, tmp_path / "dump")
    edit_by_hand(made, (EDITS | EDITS_OF_A_LANGUAGE_MODEL)[case])
    ways = {name: way for name, way in WAYS.items() if case in EDITS or name != "vectors"}
    in_turn(made, ways, r"manifest\.json: (not as it was written.*shards seal|damaged manifest)")


def edit_by_hand(folder: Path, edit: Edit) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    edit(content)
    (folder / "manifest.json").write_text(json.dumps(content, indent=2) + "\n")


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "checksums.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/tokenizer.json",
        "shards/00001.json",
    ],
)
def test_no_flipped_bit_is_silent(name: str, copied: Path) -> None:
    file, choose = copied / name, random.Random(0)
    whole = file.read_bytes()
    for at in choose.sample(range(len(whole)), min(len(whole), 60)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << choose.randrange(8)]) + whole[at + 1 :])
        if name == "checksums.json" and at > whole.index(b"weights/"):  # the manifest has their hashes, too
            assert verify(Folder.of(copied))
            continue
        with pytest.raises(DumpError) as refusal:
            Dump(copied).scan()
        assert "\n" not in str(refusal.value)
    file.write_bytes(whole)
    Dump(copied).scan()


def test_no_change_of_a_footer_reaches_whoever_parses_it(copied: Path) -> None:
    """One byte after another, of which some would end the process in Arrow."""
    path, receipt = shard_path(Folder.of(copied), 1), Dump(copied).receipts[1]
    whole, size, choose = path.read_bytes(), len(footer_of(path)), random.Random(0)
    assert size > 1000
    for at in [*choose.sample(range(len(whole) - size, len(whole)), 300), len(whole) - 1]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << choose.randrange(8)]) + whole[at + 1 :])
        with pytest.raises(DumpError, match=r"00001\.parquet: damaged shard \(its footer"):
            open_shard(path, receipt)
        with pytest.raises(DumpError, match=r"00001\.parquet: damaged shard \(its footer"):
            Dump(copied).scan().collect()
    path.write_bytes(whole)
    assert open_shard(path, receipt).read().num_rows == receipt.rows


# --- sealing --------------------------------------------------------------------------------------------------------


def test_a_deliberate_edit_is_sealed_and_keeps_the_identity(copied: Path) -> None:
    identity = Dump(copied).manifest.identity
    edit_by_hand(copied, lambda m: m.update(label_names=["bad", "so-so", "good"]))
    config = copied / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 60}))
    lines = seal(Folder.of(copied))
    assert lines[1:] == ["  manifest.json: changed", "  tokenizer/tokenizer_config.json: changed"]
    assert Dump(copied).manifest.identity == identity
    read_all(copied)
    assert DumpSource(copied).label_names == ("bad", "so-so", "good")
    assert verify(Folder.of(copied)) == []
    assert "nothing has changed" in seal(Folder.of(copied))[0]


@pytest.mark.parametrize("case", ["another manifest", "everything but the shards", "another vocabulary", "embeddings"])
def test_what_does_not_belong_is_not_sealed(case: str, copied: Path, other: Path) -> None:
    before = (copied / "checksums.json").read_bytes()
    if case == "another vocabulary":
        file = copied / "tokenizer" / "tokenizer.json"
        file.write_text(file.read_text().replace('"fox"', '"fux"'))
    elif case == "embeddings":
        shutil.copy(other / "weights" / "embeddings.safetensors", copied / "weights")
    else:
        STRANGERS[case][0](copied, other)
        before = (copied / "checksums.json").read_bytes()
    with pytest.raises(DumpError):
        seal(Folder.of(copied))
    assert (copied / "checksums.json").read_bytes() == before


@pytest.mark.parametrize("edit", [lambda m: m.update(vocabulary=0), lambda m: m.update(surprise=1)])
def test_a_manifest_that_cannot_be_read_is_not_sealed(edit: Edit, copied: Path) -> None:
    before = (copied / "checksums.json").read_bytes()
    edit_by_hand(copied, edit)
    with pytest.raises(DumpError, match=r"manifest\.json: damaged manifest"):
        seal(Folder.of(copied))
    assert (copied / "checksums.json").read_bytes() == before


@pytest.mark.parametrize("case", ["task", "layer 99", "threshold", "levels"])
def test_what_the_shards_deny_is_not_sealed(case: str, dump: Path, language: Path, tmp_path: Path) -> None:
    """They have a description of their own."""
    made = shutil.copytree(dump if case in EDITS else language, tmp_path / "dump")
    edit_by_hand(made, (EDITS | EDITS_OF_A_LANGUAGE_MODEL)[case])
    before = (made / "checksums.json").read_bytes()
    with pytest.raises(DumpError, match=r"Nothing was signed|hidden\.99"):
        seal(Folder.of(made))
    assert (made / "checksums.json").read_bytes() == before
    sign(made)
    assert verify(Folder.of(made))


def test_a_dump_of_an_earlier_version_is_sealed_on_demand(copied: Path) -> None:
    downgrade(copied, 5)
    edit_by_hand(copied, EDITS["label names reversed"])
    read_all(copied)
    assert "  manifest.json" in seal(Folder.of(copied))
    assert verify(Folder.of(copied)) == []
    edit_by_hand(copied, EDITS["label names reversed"])
    in_turn(copied, WAYS, r"manifest\.json: not as it was written")


# --- `dump` goes on --------------------------------------------------------------------------------------------------


@pytest.fixture
def go_on(dump: Path, teacher: Path) -> Callable[[Path], int]:
    """The command that made the dump, for a copy of it -> how many shards it made."""

    def run(folder: Path) -> int:
        data = (str(dump.parent / "corpus.jsonl"),)
        request = Request(str(teacher), TASK, data, folder, max_length=64, shard_rows=16, device="cpu", **OPTIONS)
        return annotate(prepare(request)).made

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", STRANGERS)
def test_dump_neither_mixes_nor_replaces_what_belongs_elsewhere(
    case: str, copied: Path, other: Path, go_on: Callable[[Path], int]
) -> None:
    """Nor does it when a shard is left to make: the stranger's file is as it was, and named."""
    done, name = STRANGERS[case]
    for suffix in ("parquet", "json"):
        (copied / "shards" / f"00003.{suffix}").unlink()
    done(copied, other)
    before = contents(copied)
    if case == "everything but the shards":
        name = "never mixes"
    with pytest.raises(Exception, match=name):
        go_on(copied)
    assert contents(copied).items() >= {key: value for key, value in before.items() if key != ".claims"}.items()


def test_dump_makes_damaged_shards_again(copied: Path, dump: Path, go_on: Callable[[Path], int]) -> None:
    shard, cut, receipt = (copied / "shards" / name for name in ("00000.parquet", "00001.parquet", "00002.json"))
    shard.write_bytes(shard.read_bytes()[:-1])
    cut.write_bytes(b"")
    receipt.write_bytes(receipt.read_bytes().replace(b'"rows":16', b'"rows":17'))
    (copied / "shards" / "00003.json").unlink()
    assert go_on(copied) == 4
    assert contents(copied) == contents(dump)


def test_receipts_are_read_for_one_dump(dump: Path, other: Path) -> None:
    with pytest.raises(DumpError, match=r"00000\.json: this receipt belongs to another dump"):
        read_receipts(Folder.of(dump), 4, Dump(other).manifest.identity)
    with pytest.raises(DumpError, match=r"00000\.json: this receipt belongs to another dump"):
        read_receipts(Folder.of(dump), 4, None)
