"""`dump` into a place that is no path: the same bytes, nothing half-written, messages that name it as the user did."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared import Dump, DumpError, UsageError
from shared.cli import run as run_command
from shared.dump import shards
from shared.dump.manifest import Manifest
from shared.storage import Folder
from shared.storage.on_disk import on_disk
from teacher_dump import claims as claims_module
from teacher_dump.annotate import Outcome, annotate, prepare
from teacher_dump.claims import Shares
from teacher_dump.cli import app
from teacher_dump.request import Request
from teacher_dump.workers import Worker

SHARDS = 4


def contents(folder: Folder) -> dict[str, bytes]:
    with on_disk(folder) as root:
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def request_for(
    make_teacher: Any, write_corpus: Any, texts: list[str], tmp_path: Path
) -> Callable[[Folder | str], Request]:
    """A dump of four shards with weights of both kinds: constants of a codec, and word embeddings."""
    teacher, data = make_teacher("masked-lm"), write_corpus(tmp_path / "corpus.jsonl", texts[:40])
    return lambda out: Request(
        str(teacher), "masked-lm", (str(data),), str(out), top_k=5, hidden="1", hidden_rank=4, embeddings=True,
        max_length=64, shard_rows=10, device="cpu", batch_tokens=100,
    )  # fmt: skip


@pytest.fixture
def undisturbed(request_for: Callable[..., Request], tmp_path: Path) -> dict[str, bytes]:
    out = Folder.of(tmp_path / "undisturbed")
    annotate(prepare(request_for(out)))
    return contents(out)


def test_a_dump_has_the_same_bytes_wherever_it_is(
    place: Folder, request_for: Callable[..., Request], undisturbed: dict[str, bytes]
) -> None:
    assert annotate(prepare(request_for(place))).made == SHARDS
    assert contents(place) == undisturbed
    assert {name.partition("/")[0] for name in undisturbed} == {
        "README.md", "checksums.json", "manifest.json", "shards", "tokenizer", "weights",
    }  # fmt: skip
    assert Dump(place).verify() == []


# --- what fails ------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_begun_is_left_empty(
    place: Folder, request_for: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(manifest: Manifest, folder: Folder) -> None:
        raise OSError(28, "No space left on device")

    plan = prepare(request_for(place))
    monkeypatch.setattr(Manifest, "write", fail)
    with pytest.raises(DumpError, match=rf"^--out {place}: cannot be written \(.*No space left on device"):
        annotate(plan)
    assert contents(place) == {}


def test_a_shard_that_cannot_be_written_is_absent_and_made_by_the_next_run(
    place: Folder,
    request_for: Callable[..., Request],
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = prepare(request_for(place))
    with monkeypatch.context() as patch:
        table, calls = shards.to_table, iter(range(100))

        def fail(*arguments: Any) -> Any:
            if next(calls) == 2:
                raise OSError(28, "No space left on device")
            return table(*arguments)

        patch.setattr(shards, "to_table", fail)
        with pytest.raises(DumpError, match=rf"^{place}/shards/00002\.parquet: cannot be written \(No space left"):
            annotate(plan)
    assert (place / "shards").names() == ["00000.json", "00000.parquet", "00001.json", "00001.parquet"]
    assert annotate(prepare(request_for(place))).made == 2
    assert contents(place) == undisturbed


def test_a_place_with_other_files_is_refused(place: Folder, request_for: Callable[..., Request]) -> None:
    place.make()
    (place / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=rf"^--out {place}: holds other files already \(thesis\.tex\)"):
        prepare(request_for(place))
    with pytest.raises(UsageError, match=rf"^--out {place}/thesis\.tex: this is a file; name a folder"):
        prepare(request_for(place / "thesis.tex"))


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def dump(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """dump(request, *words) -> (exit code, standard output, standard error)."""

    def call(request: Request, *words: str) -> tuple[int, str, str]:
        options = f"--teacher {request.teacher} --task masked-lm --data {request.data[0]} --out {request.out}".split()
        options += ["--max-length", "64", "--shard-rows", "10", "--device", "cpu", *words]
        monkeypatch.setattr(sys, "argv", ["dump", *options])
        with pytest.raises(SystemExit) as ended:
            run_command(app)
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def test_the_command_line_names_the_place_as_it_was_given(
    place: Folder, request_for: Callable[..., Request], dump: Callable[..., tuple[int, str, str]]
) -> None:
    code, estimated, _ = dump(request_for(place), "--dry-run")
    assert code == 0
    assert ("free" in estimated) == (place.local is not None), "only a disk of this machine has room that is known"
    assert contents(place) == {}
    code, out, _ = dump(request_for(place))
    assert code == 0
    assert f"\n{place}: 4 of 4 shards written" in out
    assert f"shards head {place}\n" in out
    assert f"\n{place} is complete already: 4 shards" in dump(request_for(place))[1]


def test_a_url_that_cannot_be_opened_is_one_sentence(
    request_for: Callable[..., Request], dump: Callable[..., tuple[int, str, str]]
) -> None:
    for url in ("nowhere://bucket/dump", "s3:/bucket/dump"):
        code, out, error = dump(request_for(url))
        assert (code, out) == (2, "")
        assert error.startswith(f"error: {url}: ")
        assert "Traceback" not in error
        assert len(error.splitlines()) <= 3


# --- several processes without locks ---------------------------------------------------------------------------------


def run_as(rank: int, count: int, request: Request, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    with monkeypatch.context() as patch:
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}.items():
            patch.setenv(name, str(value))
        return annotate(prepare(request))


def test_processes_divide_the_shards_of_a_dump_elsewhere_by_their_ranks(
    in_memory: Folder,
    request_for: Callable[..., Request],
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = request_for(in_memory)
    assert run_as(0, 3, request, monkeypatch).made == 2
    assert list(Dump(in_memory).receipts) == [0, 3]
    assert run_as(2, 3, request, monkeypatch).made == 1
    assert run_as(2, 3, request, monkeypatch).made == 0
    assert list(Dump(in_memory).receipts) == [0, 2, 3]
    # As many as there are now; the shard of the one that is missing is found all the same.
    assert run_as(1, 2, request, monkeypatch).made == 1
    assert contents(in_memory) == undisturbed


def test_a_process_with_nothing_left_to_do_says_so(
    in_memory: Folder,
    request_for: Callable[..., Request],
    dump: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert "2 of 4 shards written" in dump(request_for(in_memory))[1]
    assert f"{in_memory}: nothing is left for this process; others are at work" in dump(request_for(in_memory))[1]


def test_all_wait_for_the_first_to_begin_the_dump(in_memory: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "SECONDS_BETWEEN_LOOKS", 0.001)
    begun = threading.Event()

    def wait() -> None:
        with Shares(in_memory, Worker(1, 1, 2)).alone():
            begun.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    with Shares(in_memory, Worker(0, 0, 2)).alone():
        assert not begun.wait(0.05)
        (in_memory / "manifest.json").write_text("{}")
    assert begun.wait(5)
    waiting.join()


def test_nobody_waits_for_ever(in_memory: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "SECONDS_BETWEEN_LOOKS", 0.001)
    monkeypatch.setattr(claims_module, "PATIENCE_SECONDS", 0.01)
    with pytest.raises(DumpError, match=rf"^{in_memory}: the first of the processes has not begun the dump"):
        Shares(in_memory, Worker(1, 1, 2)).alone().__enter__()


def test_every_shard_is_the_share_of_one_process(in_memory: Folder) -> None:
    missing = [0, 1, 2, 3, 5, 6, 8, 13]
    for count in (1, 2, 3, 5):
        shares = [Shares(in_memory, Worker(rank, rank, count)) for rank in range(count)]
        assert sorted(shard for share in shares for shard in share.mine(missing)) == missing
        for shard in missing:
            assert [share.claim(shard) for share in shares].count(True) == 1
            assert all(share.is_free(shard) for share in shares), "nobody waits"
