"""A dump that was killed goes on where it stopped, and ends byte for byte as if nothing had happened."""

import multiprocessing
import random
import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from shared import Dump, UsageError
from shared.dump import shards
from shared.dump.integrity.checksums import write_checksums
from shared.dump.manifest import Manifest
from shared.storage import Folder, Place
from shared.storage.on_disk import on_disk
from teacher_dump import folder as folder_module
from teacher_dump.annotate import annotate, prepare
from teacher_dump.cli import dump as dump_command
from teacher_dump.request import Request

KILLS = 20
ROWS, SHARD_ROWS = 288, 6


def contents(folder: Place, *patterns: str) -> dict[str, bytes]:
    """Every file's bytes by name."""
    with on_disk(Folder.of(folder)) as root:
        return {
            str(path.relative_to(root)): path.read_bytes()
            for pattern in patterns or ("*",)
            for path in sorted(root.rglob(pattern))
            if path.is_file()
        }


def written_at(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((folder / "shards").glob("*.json"))}


# --- kill -9 ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., BaseProcess]]:
    """start(**options) -> a process of its own that runs the command; the heavy imports were made once and forked."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["teacher_dump.estimate", "transformers.models.bert.modeling_bert"])
    started: list[BaseProcess] = []

    def run(**options: Any) -> BaseProcess:
        texts = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        process = context.Process(target=dump_command, kwargs=texts)
        process.start()
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.join()


def wait_for(condition: Callable[[], bool], process: BaseProcess) -> None:
    """Until the condition holds or the process has ended."""
    while not condition() and process.is_alive():
        time.sleep(0.001)


def test_killed_twenty_times_over_the_shards_are_those_of_an_undisturbed_run(
    start: Any, make_teacher: Any, write_corpus: Any, texts: list[str], tmp_path: Path
) -> None:
    options = {
        "teacher": str(make_teacher("masked-lm")),
        "task": "masked-lm",
        "data": [str(write_corpus(tmp_path / "corpus.jsonl", texts[:ROWS]))],
        "top_k": 9,
        "hidden": "last",
        "max_length": 64,
        "batch_tokens": 100,
        "shard_rows": SHARD_ROWS,
        "device": "cpu",
    }
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "killed"
    start(**options, out=tmp_path / "warm-up").join()
    process = start(**options, out=undisturbed)
    wait_for((undisturbed / "manifest.json").exists, process)
    shards_begun = time.monotonic()
    process.join()
    assert process.exitcode == 0
    shard_seconds = (time.monotonic() - shards_begun) / (ROWS / SHARD_ROWS)
    # A run that goes on starts faster than the first, which had a sample to look at.
    begun = time.monotonic()
    start(**options, out=undisturbed).join()
    startup_seconds = time.monotonic() - begun

    chance = random.Random(0)
    during_shards = 0
    finished: dict[str, int] = {}

    def sleep(seconds: float) -> None:
        """No longer than until three more shards are written: on a machine that is faster now than it was when we
        measured, the run would end by itself."""
        end, most = time.monotonic() + seconds, min(len(finished) + 3, ROWS // SHARD_ROWS - 1)
        while time.monotonic() < end and len(written_at(out)) < most:
            time.sleep(0.002)

    for kill in range(KILLS):
        process = start(**options, out=out)
        if kill % 4 == 0:
            # Anywhere from the first import to the first shards: before, while or after the folder is made.
            sleep(chance.uniform(0.0, 1.2 * startup_seconds))
        else:
            # Anywhere within the next shard or two.
            more = len(finished) + chance.randrange(2)
            wait_for(lambda more=more: len(written_at(out)) > more, process)
            sleep(chance.uniform(0.0, 1.5 * shard_seconds))
        process.kill()
        process.join()
        assert process.exitcode == -9, "the run had ended before it was killed"
        now = written_at(out)
        assert finished.items() <= now.items(), "a finished shard was written again"
        during_shards += len(finished) < len(now) < ROWS // SHARD_ROWS
        finished = now
    assert during_shards >= KILLS // 2
    assert 0 < len(finished) < ROWS // SHARD_ROWS

    process = start(**options, out=out)
    process.join()
    assert process.exitcode == 0
    assert finished.items() <= written_at(out).items(), "a finished shard was written again"
    patterns = ("*.parquet", "*.json", "*.md", "*.tmp")
    assert contents(out, *patterns) == contents(undisturbed, *patterns)
    assert sorted(Dump(out).scan().select("row").collect()["row"]) == list(range(ROWS))
    assert Dump(out).verify() == []


# --- each moment of a kill, in this process --------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill at a chosen line."""


@pytest.fixture
def anywhere(case: Request, place: Folder) -> Request:
    """The small command with its dump on this machine's disk and elsewhere."""
    return changed(case, out=str(place))


@pytest.fixture
def case(make_teacher: Any, write_corpus: Any, toy_rows: Any, tmp_path: Path) -> Request:
    """A small command over four shards: one distribution a row, hidden states a token."""
    rows = toy_rows("sequence-classification", 40)
    data = write_corpus(tmp_path / "corpus.jsonl", rows)
    teacher = make_teacher("sequence-classification")
    return Request(
        str(teacher), "sequence-classification", (str(data),), tmp_path / "dump", hidden="1", max_length=64,
        shard_rows=11, device="cpu", batch_tokens=100,
    )  # fmt: skip


def changed(request: Request, **changes: Any) -> Request:
    return Request(**{**vars(request), **changes})


def run(request: Request) -> int:
    """Returns how many shards it made."""
    return annotate(prepare(request)).made


@pytest.fixture
def undisturbed(case: Request, tmp_path: Path) -> dict[str, bytes]:
    out = tmp_path / "undisturbed"
    run(changed(case, out=out))
    return contents(out)


def test_a_kill_between_a_shard_and_its_receipt(
    anywhere: Request, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = shards.write_receipt

    def killed(folder: Folder, index: int, receipt: shards.Receipt) -> None:
        if index == 1:
            raise Killed
        write(folder, index, receipt)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_receipt", killed)
        with pytest.raises(Killed):
            run(anywhere)
    assert (anywhere.folder / "shards").names() == [
        "00000.json",
        "00000.parquet",
        "00001.parquet",
    ]
    assert list(Dump(anywhere.folder).receipts) == [0]
    assert run(anywhere) == 3
    assert contents(anywhere.folder) == undisturbed


@pytest.mark.parametrize("moment", ["checksums", "manifest", "card"])
def test_a_kill_while_the_folder_is_made(
    moment: str, anywhere: Request, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, between and after the files that make it a dump; what was there may have been another teacher's."""

    def killed(manifest: Any, folder: Folder | None = None) -> None:
        if moment == "manifest":
            write_checksums(anywhere.folder, "what another command would have written")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*((folder_module, "write_card") if moment == "card" else (Manifest, "write")), killed)
        with pytest.raises(Killed):
            run(anywhere)
    assert (anywhere.folder / "tokenizer" / "tokenizer.json").exists()
    assert (anywhere.folder / "checksums.json").exists() == (moment != "checksums")
    assert (anywhere.folder / "manifest.json").exists() == (moment == "card")
    (anywhere.folder / "manifest.json.tmp").write_text("{")
    if moment != "card":
        (anywhere.folder / "tokenizer" / "tokenizer.json").write_text("{")
        (anywhere.folder / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}")
        (anywhere.folder / "weights").make()
        (anywhere.folder / "weights" / "hidden.9.safetensors").write_bytes(b"")
    assert run(anywhere) == 4
    assert contents(anywhere.folder) == undisturbed


def test_leftovers_of_a_kill_are_cleared_away(case: Request, undisturbed: dict[str, bytes]) -> None:
    run(case)
    for name in ("00002.parquet", "00002.json", "00003.json"):
        (case.out / "shards" / name).unlink()
    (case.out / "shards" / "00002.parquet.tmp").write_bytes(b"PAR1 half a shard")
    (case.out / "shards" / "00003.json.tmp").write_text('{"rows": ')
    (case.out / "README.md.tmp").write_text("---")
    assert run(case) == 2
    assert contents(case.out) == undisturbed


def test_a_receipt_that_was_cut_short_or_does_not_fit_counts_for_nothing(
    anywhere: Request, undisturbed: dict[str, bytes]
) -> None:
    run(anywhere)
    receipt, shard = anywhere.folder / "shards" / "00000.json", anywhere.folder / "shards" / "00001.parquet"
    receipt.write_bytes(receipt.read_bytes()[:30])
    shard.write_bytes(shard.read_bytes()[:-1])
    assert run(anywhere) == 2
    assert contents(anywhere.folder) == undisturbed


def test_an_old_receipt_never_vouches_for_a_new_shard(anywhere: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted shard, old receipt: a kill between the new shard and its receipt must not leave the old one standing."""
    run(anywhere)
    (anywhere.folder / "shards" / "00001.parquet").remove()

    def killed(folder: Folder, index: int, receipt: shards.Receipt) -> None:
        raise Killed

    monkeypatch.setattr(shards, "write_receipt", killed)
    with pytest.raises(Killed):
        run(anywhere)
    assert (anywhere.folder / "shards" / "00001.parquet").exists()
    assert not (anywhere.folder / "shards" / "00001.json").exists()


def test_a_complete_dump_is_left_alone(case: Request) -> None:
    assert run(case) == 4
    before, times = contents(case.out), written_at(case.out)
    assert run(case) == 0
    assert (contents(case.out), written_at(case.out)) == (before, times)


def test_finished_with_another_batch_budget_the_rows_and_ids_are_the_same(
    make_dump: Any, make_teacher: Any, tmp_path: Path, texts: list[str]
) -> None:
    teacher = make_teacher("causal-lm")
    options = {"teacher": teacher, "data": texts[:40], "top_k": 5, "hidden": "last", "shard_rows": 11}
    whole = make_dump("causal-lm", **options, batch_tokens=90)
    half = tmp_path / "half"
    shutil.copytree(whole, half)
    for index in (1, 3):
        (half / "shards" / f"{index:05d}.parquet").unlink()
    (half / "shards" / "00001.json").unlink()
    make_dump("causal-lm", **options, batch_tokens=100_000, out=half)
    for index in (0, 2):
        name = f"shards/{index:05d}.parquet"
        assert (half / name).read_bytes() == (whole / name).read_bytes()
    assert Dump(half).verify() == []
    exact = ["row", "input_ids"]
    assert Dump(half).scan().select(exact).collect().equals(Dump(whole).scan().select(exact).collect())
    mine, theirs = (Dump(folder).positions().collect() for folder in (half, whole))
    exact = ["row", "position", "token_id", "label", "ids"]
    assert mine.select(exact).equals(theirs.select(exact))
    for name in ("log_probs", "tail"):
        pair = [frame[name].explode() if name == "log_probs" else frame[name] for frame in (mine, theirs)]
        np.testing.assert_allclose(*(values.to_numpy() for values in pair), atol=5e-3)
    vectors = [Dump(folder).vectors("hidden.2").collect()["vector"].explode().to_numpy() for folder in (half, whole)]
    np.testing.assert_allclose(*vectors, atol=5e-3)
    sizes = [[receipt.row_groups for receipt in Dump(folder).receipts.values()] for folder in (half, whole)]
    assert sizes[0] == sizes[1]


# --- a dump never mixes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"top_k": 2}, ["signals.distribution.codec: the dump has dense, this command asks for sparse"]),
        ({"hidden": "2"}, ["signals.hidden.1", "signals.hidden.2"]),
        ({"hidden": "none"}, ["signals.hidden.1"]),
        ({"max_length": 32}, ["options.max_length: the dump has 64, this command asks for 32"]),
        ({"shard_rows": 12}, ["options.shard_rows: the dump has 11, this command asks for 12"]),
        ({"seed": 7, "max_length": 32}, ["options.seed", "options.max_length"]),
        ({"limit": 30}, ["corpus.rows: the dump has 40, this command asks for 30", "corpus.fingerprint"]),
        (
            {"label_column": "none"},
            ["corpus.labelled_rows", "labelled: the dump has True, this command asks for False"],
        ),
        ({"dtype": "bf16"}, ["options.dtype: the dump has fp32, this command asks for bf16", "teacher.fingerprint"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_other_options_in_the_same_folder_are_refused_by_name(
    changes: dict[str, Any], named: list[str], case: Request
) -> None:
    run(case)
    before = contents(case.out)
    with pytest.raises(UsageError) as refusal:
        run(changed(case, **changes))
    assert "a dump never mixes" in str(refusal.value)
    for name in named:
        assert name in str(refusal.value)
    assert contents(case.out) == before


def test_other_weights_labels_or_texts_are_refused_by_name(
    anywhere: Request, make_teacher: Any, write_corpus: Any, toy_rows: Any, tmp_path: Path
) -> None:
    run(anywhere)
    other_weights = make_teacher("sequence-classification", seed=1)
    permuted = make_teacher("sequence-classification", id2label={0: "neutral", 1: "negative", 2: "positive"})
    rows = toy_rows("sequence-classification", 40)
    rows[17]["text"] += " dog"
    other_text = write_corpus(tmp_path / "other.jsonl", rows)
    for changes, named in (
        ({"teacher": str(other_weights)}, "teacher.fingerprint"),
        ({"teacher": str(permuted)}, "label_names"),
        ({"data": (str(other_text),)}, "corpus.fingerprint"),
    ):
        with pytest.raises(UsageError, match=named):
            run(changed(anywhere, **changes))


def test_a_moved_teacher_a_moved_corpus_and_another_file_format_are_no_difference(
    anywhere: Request, write_corpus: Any, toy_rows: Any, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    run(anywhere)
    (anywhere.folder / "shards" / "00002.json").remove()
    teacher = shutil.copytree(anywhere.teacher, tmp_path / "elsewhere" / "teacher")
    data = write_corpus(tmp_path / "moved.parquet", toy_rows("sequence-classification", 40))
    assert run(changed(anywhere, teacher=str(teacher), data=(str(data),), batch_tokens=100)) == 1
    assert contents(anywhere.folder) == undisturbed


def test_shards_without_their_manifest_are_not_taken_over(anywhere: Request) -> None:
    """Else a dump whose manifest is lost could be finished with another teacher."""
    run(anywhere)
    (anywhere.folder / "manifest.json").remove()
    before = contents(anywhere.folder)
    with pytest.raises(UsageError, match=r"00000\.json"):
        run(changed(anywhere, seed=1))
    assert contents(anywhere.folder) == before


def test_rows_are_in_one_order_whatever_the_budget(make_dump: Any, make_teacher: Any) -> None:
    """Longest first, then by row number, within each shard."""
    teacher = make_teacher("encoder")
    frames = [
        Dump(make_dump("encoder", teacher=teacher, batch_tokens=budget, shard_rows=16))
        .scan()
        .select("row", pl.col("input_ids").list.len().alias("tokens"))
        .collect()
        for budget in (30, 4096)
    ]
    assert frames[0].equals(frames[1])
    for first in range(0, 60, 16):
        part = frames[0].slice(first, 16)
        assert part.equals(part.sort(-pl.col("tokens").cast(pl.Int64), "row"))
        assert sorted(part["row"]) == list(range(first, min(first + 16, 60)))
