"""A flipped bit in the pages of a shard, or in their headers, is found by whoever reads it, or changes nothing."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from shared import Dump
from shared.dump.parquet.headers import data_pages, place_of
from shared.dump.reader import GroupReader
from shared.dump.rowgroup import to_flat
from shared.errors import DumpError

# One shard each. Together they have every kind of column: numbers and fixed-size binaries, lists, lists of lists, few
# values in a dictionary, missing ones among them.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lists of lists": ("causal-lm", {"hidden": "1", "hidden_codec": "float16"}),
    "byte planes": ("masked-lm", {"top_k": 5, "compression": "none"}),
    "missing labels": ("sequence-classification", {}),
    "lists of missing labels": ("token-classification", {"hidden": "last", "relations": "last"}),
    "questions": ("question-answering", {"compression": "lz4"}),
}
SAMPLED = 30


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, make_dump: Any, toy_rows: Any, tmp_path: Path) -> Path:
    task, options = KINDS[request.param]
    return make_dump(task, data=toy_rows(task, 6), out=tmp_path / "dump", **options)


def everything(dump: Dump) -> list[Any]:
    """Everything that can be read from a dump's shards, in all ways, as values that can be compared."""
    return [part() for part in ways(dump)]


def ways(dump: Dump) -> Iterator[Any]:
    """The ways of reading: the trainer's, then polars'."""
    columns = [column.name for signal in dump.manifest.signals for column in signal.columns]
    for group in range(len(dump.receipts[0].row_groups)):
        yield lambda group=group: trained(dump, group, columns)
        yield lambda group=group: [part.tolist() for part in reader(dump).gold(group)]
    yield lambda: reader(dump).sizes(columns).tokens.tolist()
    frames = [dump.scan(), *map(dump.vectors, dump.manifest.vectors)]
    for frame in frames if dump.manifest.distribution is None else [*frames, dump.positions()]:
        yield frame.collect
        yield frame.select(pl.len()).collect
        yield frame.filter(pl.col("row") == 3).collect


def reader(dump: Dump) -> GroupReader:
    return GroupReader(dump.path, dump.manifest, dump.receipts)


def trained(dump: Dump, group: int, columns: list[str]) -> list[Any]:
    rows = reader(dump).read(group, columns)
    plain = [value for name, value in vars(rows).items() if name != "columns" and value is not None]
    return [(part.dtype.str, part.tobytes()) for part in [*plain, *to_flat(rows.columns).values()]]


def outcomes(dump: Dump, at: int, bit: int, whole: bytes, undamaged: list[Any]) -> list[str]:
    """What becomes of a bit in the first shard, by way of reading: found, harmless, or silent."""
    path = dump.path.local / "shards" / "00000.parquet"
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
    said = []
    for way, wanted in zip(ways(dump), undamaged, strict=True):
        try:
            found = way()
        except DumpError as error:
            said.append("found" if str(path) in str(error) else f"found without the file's name: {error}")
        else:
            same = found.equals(wanted) if isinstance(found, pl.DataFrame) else found == wanted
            said.append("harmless" if same else "silent")
    path.write_bytes(whole)
    return said


def places(path: Path) -> tuple[list[int], list[int]]:
    """(places of bytes in headers of pages, places of other bytes in pages)."""
    metadata, whole = pq.ParquetFile(path).metadata, path.read_bytes()
    headers, bodies = [], []
    for number in range(metadata.num_row_groups):
        for leaf in range(metadata.num_columns):
            chunk = metadata.row_group(number).column(leaf)
            start, size = place_of(chunk)
            pages = data_pages(chunk, np.frombuffer(whole[start : start + size], np.uint8))
            in_body = set()
            for page in pages:
                first = start + whole[start : start + size].rindex(page.body.tobytes()) if len(page.body) else start
                in_body |= set(range(first, first + len(page.body)))
            headers += [at for at in range(start, start + size) if at not in in_body]
            bodies += sorted(in_body)
    return headers, bodies


def test_a_flipped_bit_in_a_page_is_found_or_harmless(folder: Path) -> None:
    """All bits of some bytes of headers, and some bits of bodies."""
    dump = Dump(folder)
    path = folder / "shards" / "00000.parquet"
    whole, undamaged = path.read_bytes(), everything(dump)
    assert undamaged[-1] is not None
    choose = random.Random(0)
    headers, bodies = places(path)
    tried = [(at, choose.randrange(8)) for at in choose.sample(headers, SAMPLED) + choose.sample(bodies, SAMPLED // 3)]
    said = [outcome for place in tried for outcome in outcomes(dump, *place, whole, undamaged)]
    assert set(said) == {"found", "harmless"}
    assert said.count("found") > SAMPLED


def test_a_page_that_claims_to_be_of_another_type_is_not_skipped(folder: Path) -> None:
    """Arrow skips pages of unknown types: a row group had no rows, and no gold labels, without a word."""
    dump = Dump(folder)
    path = folder / "shards" / "00000.parquet"
    whole, metadata = path.read_bytes(), pq.ParquetFile(path).metadata
    for leaf in range(metadata.num_columns):
        start, _ = place_of(metadata.row_group(0).column(leaf))
        assert whole[start] == 0x15  # the first field, an integer: the type
        path.write_bytes(whole[: start + 1] + bytes([whole[start + 1] ^ 2]) + whole[start + 2 :])
        name = metadata.schema.column(leaf).path.split(".list.")[0]
        with pytest.raises(DumpError, match=r"00000\.parquet.*header of a page"):
            dump.scan().select(name).collect()
        if name == dump.manifest.layout.number:
            with pytest.raises(DumpError, match=r"00000\.parquet.*header of a page"):
                reader(dump).gold(0)
    path.write_bytes(whole)


def test_a_shard_that_is_cut_or_zeroed_while_it_is_open_is_refused(folder: Path) -> None:
    dump = Dump(folder)
    path = folder / "shards" / "00000.parquet"
    whole = path.read_bytes()
    columns = [column.name for signal in dump.manifest.signals for column in signal.columns]
    opened = reader(dump)
    wanted = opened.read(0, columns)
    before = [wanted.input_ids.tobytes(), *(part.tobytes() for part in to_flat(wanted.columns).values())]
    for content in (whole[:20], b"", bytes(len(whole))):
        path.write_bytes(content)
        for read in (lambda: opened.read(0, columns), lambda: opened.gold(0), dump.scan().collect):
            with pytest.raises(DumpError, match=r"00000\.parquet"):
                read()
    # What was read before is what it was.
    assert before == [wanted.input_ids.tobytes(), *(part.tobytes() for part in to_flat(wanted.columns).values())]
    path.write_bytes(whole)
    opened.read(0, columns)
