"""Damages of shards, receipts and tokenizers: each is found, named, and never trained on."""

import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared import Dump, DumpError
from shared.dump.integrity.verification import verify
from shared.dump.parquet.tables import shard_schema, to_table
from shared.dump.reader import GroupReader
from shared.storage import Folder
from shared.storage.on_disk import save_into
from tests.hand_edits import sign

TASKS = ("causal-lm", "masked-lm", "sequence-classification", "token-classification", "encoder")


@pytest.fixture(scope="module")
def dumps(make_dump: Any) -> dict[str, Path]:
    """One finished dump of each task, all with hidden states; not to be changed."""
    return {task: make_dump(task, hidden="0,2") for task in TASKS}


@pytest.fixture
def copy(dumps: dict[str, Path], place: Folder) -> Folder:
    """A dump of four shards to be damaged, wherever dumps may be."""
    return copied(dumps["sequence-classification"], place)


def copied(dump: Path, place: Folder) -> Folder:
    save_into(place, lambda path: shutil.copytree(dump, path, dirs_exist_ok=True))
    return place


def shard(folder: Any, index: int) -> Any:
    return folder / "shards" / f"{index:05d}.parquet"


def receipt(folder: Folder, index: int) -> Folder:
    return folder / "shards" / f"{index:05d}.json"


def flip(path: Any, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << (at % 8)
    path.write_bytes(content)


def test_a_fresh_dump_has_no_damage_and_reads_anywhere(dumps: dict[str, Path], copy: Folder) -> None:
    for folder in (*dumps.values(), copy):
        assert Dump(folder).verify() == []


def read_for_training(folder: Folder, index: int) -> list[pa.Table] | str:
    """A shard's row groups as a trainer reads them, with all columns; or what the trainer stops with."""
    dump = Dump(folder)
    reader = GroupReader(dump.path, dump.manifest, {index: dump.receipts[index]})
    codecs = [dump.distribution, *dump.manifest.vectors.values()]
    names = [column.name for codec in codecs for column in codec.columns]
    try:
        groups = [reader.read(group, names) for group in range(len(reader.group_rows))]
    except DumpError as error:
        return str(error)
    return [to_table(dump.manifest, shard_schema(dump.manifest), group) for group in groups]


def test_every_flipped_byte_is_found_and_never_trained_on(copy: Folder) -> None:
    """40 random bytes of a shard, the first and the last among them; a trainer stops, or need not read the byte."""
    whole, content, stopped = shard(copy, 1).read_bytes(), read_for_training(copy, 1), 0
    places = [0, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 38)]
    for at in places:
        flip(shard(copy, 1), at)
        damages = Dump(copy).verify()
        assert len(damages) == 1
        assert "00001.parquet" in damages[0]
        found = read_for_training(copy, 1)
        stopped += isinstance(found, str)
        assert "00001.parquet" in found if isinstance(found, str) else found == content
        assert not isinstance(read_for_training(copy, 0), str)
        shard(copy, 1).write_bytes(whole)
    assert stopped > len(places) / 2
    assert Dump(copy).verify() == []


@pytest.mark.parametrize("kept", [0, 3, 1000, -1])
def test_a_shard_cut_short(kept: int, copy: Folder) -> None:
    shard(copy, 2).write_bytes(shard(copy, 2).read_bytes()[:kept])
    assert_one_damage(copy, "00002.parquet")


def test_a_missing_shard(copy: Folder) -> None:
    shard(copy, 3).remove()
    assert_one_damage(copy, "00003.parquet")


def test_a_missing_receipt(copy: Folder) -> None:
    receipt(copy, 0).remove()
    assert_one_damage(copy, "00000.parquet")


@pytest.mark.parametrize("content", ["", "{}", '{"rows": 1}', "\x00"])
def test_a_damaged_receipt(content: str, copy: Folder) -> None:
    receipt(copy, 0).write_text(content)
    assert_one_damage(copy, "00000.json")


def assert_one_damage(folder: Folder, name: str) -> None:
    damages = Dump(folder).verify()
    assert len(damages) == 1
    assert damages[0].startswith(f"{folder}/shards/{name}: "), "not named as the user named it"
    with pytest.raises(DumpError, match=rf"1 of 4 shards are missing.*{name[:5]}|{name[:5]}.*: damaged"):
        Dump(folder).require_complete()


def test_a_shard_that_vanishes_while_it_is_in_use_is_named(copy: Folder) -> None:
    dump = Dump(copy)
    dump.require_complete()
    reader = GroupReader(dump.path, dump.manifest, dump.receipts)
    shard(copy, 1).remove()
    with pytest.raises(DumpError, match=r"00001\.parquet"):
        reader.sizes([])


def test_swapped_shards(copy: Folder) -> None:
    """Each with its own receipt, so that sizes and checksums fit: the numbers do not."""
    for file in (shard, receipt):
        first, second = file(copy, 0), file(copy, 1)
        held = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(held)
    damages = Dump(copy).verify()
    assert [damage.split(": ")[0] for damage in damages] == [str(receipt(copy, index)) for index in (0, 1)]
    assert "the receipt of shard 00001, not 00000" in damages[0]


def test_a_shard_of_another_dump(copy: Folder, dumps: dict[str, Path]) -> None:
    for file in (shard, receipt):
        file(copy, 0).write_bytes(file(Folder.of(dumps["encoder"]), 0).read_bytes())
    (damage,) = Dump(copy).verify()
    assert damage.startswith(f"{receipt(copy, 0)}: this receipt belongs to another dump")


def test_strangers_among_the_shards(copy: Folder) -> None:
    (copy / "shards" / "00004.parquet").write_bytes(b"")
    (copy / "shards" / "00001.parquet.tmp").write_bytes(b"")
    damages = Dump(copy).verify()
    assert len(damages) == 2
    assert all("does not belong to this dump" in damage for damage in damages)


def test_a_changed_tokenizer(copy: Folder) -> None:
    path = copy / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace('"fox"', '"fux"'))
    assert [damage for damage in verify(copy) if "tokenizer.json: not as it was written" in damage]
    sign(copy)
    assert [damage for damage in verify(copy) if "not the tokenizer that the manifest describes" in damage]
    path.write_text("{")
    sign(copy)
    assert [damage for damage in verify(copy) if "tokenizer.json: cannot be read" in damage]
    path.remove()
    assert [damage for damage in verify(copy) if "tokenizer.json: missing" in damage]


def test_pages_carry_their_own_checksums(dumps: dict[str, Path], tmp_path: Path) -> None:
    """So that readers of other projects notice damage too."""
    path = shutil.copy(shard(dumps["sequence-classification"], 0), tmp_path / "shard.parquet")
    column = (
        pq.ParquetFile(path).metadata.row_group(0).column(pq.ParquetFile(path).schema_arrow.names.index("hidden.2"))
    )
    flip(Path(path), column.data_page_offset + column.total_compressed_size - 5)
    with pytest.raises((OSError, pa.ArrowInvalid), match=r"CRC|crc"):
        pq.ParquetFile(path, page_checksum_verification=True).read()
