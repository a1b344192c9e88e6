"""Several processes on one dump: each shard is made once, whoever dies, and the dump is that of one process alone."""

import dataclasses
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from shared import Dump, UsageError
from shared.dump.manifest import read_manifest
from shared.errors import LecternError
from shared.storage import Folder
from teacher_dump import annotate as annotate_module
from teacher_dump.annotate import annotate, prepare
from teacher_dump.folder import check_folder
from teacher_dump.request import Request

pytestmark = pytest.mark.usefixtures("no_hang")

ROWS, SHARD_ROWS, SHARDS = 96, 8, 12


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def committed(out: Path) -> dict[str, int]:
    """When each receipt was written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "shards").glob("*.json")}


@pytest.fixture(scope="module")
def command(
    make_teacher: Any, write_corpus: Any, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Request:
    """int8 is fitted to a sample, and so is the threshold: whoever begins the dump decides them for all."""
    folder = tmp_path_factory.mktemp("command")
    return Request(
        str(make_teacher("masked-lm")), "masked-lm", (str(write_corpus(folder / "corpus.jsonl", texts[:ROWS])),),
        folder / "alone", bytes_per_token=20.0, hidden="1", hidden_codec="int8", max_length=64, batch_tokens=40,
        shard_rows=SHARD_ROWS, device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(command: Request) -> dict[str, bytes]:
    """The dump that one process makes."""
    annotate(prepare(command))
    return contents(command.out)


# --- processes -------------------------------------------------------------------------------------------------------


def work(request: Request, rank: int, count: int, slow: float, log: Path, start: Any) -> None:
    """One of several processes: says what it made, or how it failed. `slow`: seconds that each shard takes longer."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    write = annotate_module.write_shard

    def tell(what: str, value: Any) -> None:
        # No queue: a process that is killed while it holds a queue's lock stops all others.
        with open(log, "ab", buffering=0) as file:
            file.write((json.dumps([rank, what, value]) + "\n").encode())

    def write_slowly(folder: Path, index: int, manifest: Any, groups: Any) -> Any:
        def late() -> Iterator[Any]:
            for group in groups:
                tell("at work on", index)
                time.sleep(slow)
                yield group

        return write(folder, index, manifest, late())

    annotate_module.write_shard = write_slowly
    try:
        plan = prepare(request)
        if start is not None:
            start.wait()
        tell("made", annotate(plan).made)
    except LecternError as error:
        tell("failed", f"{type(error).__name__}: {error}")
        raise SystemExit(error.exit_code) from None


class Team:
    """Processes at work on one command, and what they have said."""

    def __init__(self, log: Path) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["teacher_dump.estimate", "transformers.models.bert.modeling_bert"])
        self.log, self.processes = log, []
        log.touch()

    def start(self, requests: list[Request], slow: tuple[float, ...] = (0.0,), together: bool = False) -> None:
        """One process a request; `slow` for each of them, or for all."""
        self.barrier = self.context.Barrier(len(requests)) if together else None
        first = len(self.processes)
        for index, request in enumerate(requests):
            arguments = request, first + index, first + len(requests), slow[index % len(slow)], self.log, self.barrier
            self.processes.append(self.context.Process(target=work, args=arguments, daemon=True))
            self.processes[-1].start()

    def said(self, what: str) -> list[tuple[int, Any]]:
        """(process, value) so far."""
        lines = (json.loads(line) for line in self.log.read_text().splitlines())
        return [(who, value) for who, said, value in lines if said == what]

    def hear(self, what: str, rank: int) -> Any:
        """What a process says, once it does."""
        while True:
            for who, value in self.said(what):
                if who == rank:
                    return value
            assert self.processes[rank].is_alive(), f"{rank} has ended without a word"
            time.sleep(0.005)

    def end(self) -> list[int | None]:
        """Waits for all; returns their exit codes."""
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]

    @property
    def made(self) -> dict[int, int]:
        return dict(self.said("made"))


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Team]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    processes = Team(tmp_path / "log.jsonl")
    yield processes
    for process in processes.processes:
        process.kill()
        process.join()


def kill(process: BaseProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def assert_complete(out: Path, alone: dict[str, bytes]) -> None:
    """Byte for byte what one process makes, and nothing besides: no claims, nothing half-written."""
    assert contents(out) == alone
    assert not [name for name in alone if name.endswith((".tmp", ".claims"))]
    assert Dump(out).verify() == []
    assert sorted(Dump(out).scan().select("row").collect()["row"]) == list(range(ROWS))


@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_start_together_share_the_work(
    count: int, command: Request, alone: dict[str, bytes], team: Team, tmp_path: Path
) -> None:
    """Into an empty folder at the same instant. Each shard is made once, by one of them."""
    out = tmp_path / "dump"
    team.start([dataclasses.replace(command, out=out)] * count, slow=(0.1,), together=True)
    assert team.end() == [0] * count
    assert sorted(shard for _, shard in team.said("at work on")) == list(range(SHARDS))
    assert sum(team.made.values()) == SHARDS
    assert min(team.made.values()) > 0, team.made
    assert_complete(out, alone)


def test_a_process_ends_well_only_when_the_dump_is_complete(
    command: Request, alone: dict[str, bytes], team: Team, tmp_path: Path
) -> None:
    """Nothing is left to take for the second; it waits for the first."""
    request = dataclasses.replace(command, out=tmp_path / "dump", limit=2 * SHARD_ROWS)
    team.start([request], slow=(2.0,))
    team.hear("at work on", 0)
    team.start([request])
    second = team.processes[1]
    second.join()
    assert (second.exitcode, len(committed(request.out))) == (0, 2)
    assert team.end() == [0, 0]
    assert sum(team.made.values()) == 2
    assert Dump(request.out).verify() == []


def test_of_three_processes_one_is_killed_and_the_others_finish_its_shard(
    command: Request, alone: dict[str, bytes], team: Team, tmp_path: Path
) -> None:
    out = tmp_path / "dump"
    team.start([dataclasses.replace(command, out=out)] * 3, slow=(1000.0, 0.05, 0.05), together=True)
    shard = team.hear("at work on", 0)
    kill(team.processes[0])
    assert shard not in Dump(out).receipts
    assert (out / "shards" / f"{shard:05d}.parquet.tmp").exists()
    finished = committed(out)
    assert team.end() == [-signal.SIGKILL, 0, 0]
    assert sum(team.made.values()) == SHARDS
    assert shard in [value for who, value in team.said("at work on") if who != 0]
    assert finished.items() <= committed(out).items()
    assert_complete(out, alone)


def test_all_are_killed_and_another_number_of_them_finishes(
    command: Request, alone: dict[str, bytes], team: Team, tmp_path: Path
) -> None:
    request = dataclasses.replace(command, out=tmp_path / "dump")
    team.start([request] * 2, slow=(0.3,), together=True)
    while len(committed(request.out)) < 3:
        time.sleep(0.005)
    for process in team.processes:
        kill(process)
    finished = committed(request.out)
    assert 3 <= len(finished) < SHARDS - 2
    team.start([request] * 3, together=True)
    assert team.end() == [-signal.SIGKILL] * 2 + [0] * 3
    assert sum(team.made.values()) == SHARDS - len(finished)
    assert finished.items() <= committed(request.out).items(), "a finished shard was written again"
    assert_complete(request.out, alone)


def test_other_options_are_refused_and_disturb_nobody(
    command: Request, alone: dict[str, bytes], team: Team, tmp_path: Path
) -> None:
    request = dataclasses.replace(command, out=tmp_path / "dump")
    team.start([request], slow=(0.1,))
    team.hear("at work on", 0)
    team.start([dataclasses.replace(request, seed=5)])
    words = team.hear("failed", 1)
    assert words.startswith("UsageError: --out")
    assert "options.seed: the dump has 0, this command asks for 5" in words
    assert team.end() == [0, 2]
    assert_complete(request.out, alone)


def test_of_two_that_begin_together_with_other_options_one_is_refused(
    command: Request, team: Team, tmp_path: Path
) -> None:
    request = dataclasses.replace(command, out=tmp_path / "dump")
    requests = [request, dataclasses.replace(request, seed=5)]
    team.start(requests, together=True)
    codes = team.end()
    assert sorted(codes) == [0, 2]  # type: ignore[type-var]
    winner = codes.index(0)
    assert read_manifest(request.folder).options.seed == requests[winner].seed
    assert team.made == {winner: SHARDS}
    assert Dump(request.out).verify() == []


# --- beginning, step by step in one process --------------------------------------------------------------------------


def test_what_is_fitted_to_a_sample_is_whose_who_began(
    command: Request, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two have looked at their samples before either begins, and found other last digits: on other hardware, say."""
    request = dataclasses.replace(command, out=tmp_path / "dump")
    calibrate = annotate_module.calibrate

    def other_digits(*arguments: Any) -> Any:
        manifest = calibrate(*arguments)
        distribution, hidden = manifest.signals
        assert distribution.name == "distribution"
        codec = distribution.codec
        rule = codec.selection.model_copy(update={"threshold": 1.01 * codec.selection.threshold})
        moved = distribution.with_codec(codec.model_copy(update={"selection": rule}))
        return manifest.model_copy(update={"signals": (moved, hidden), "measured": {}})

    with monkeypatch.context() as patch:
        patch.setattr(annotate_module, "calibrate", other_digits)
        late = prepare(request)
    assert late.manifest.signals != prepare(request).manifest.signals

    begin = prepare(request)
    monkeypatch.setattr(annotate_module, "_annotate_missing", lambda plan, claims: None)
    annotate(begin)
    monkeypatch.undo()
    assert annotate(late).made == SHARDS
    assert contents(request.out) == alone


def test_a_folder_that_another_process_is_just_beginning_is_no_strangers(
    command: Request, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The manifest was not there yet when it was looked for, and is when the folder's files are listed."""
    out = tmp_path / "dump"
    out.mkdir()
    iterdir = Path.iterdir

    def begun_meanwhile(folder: Path) -> Any:
        for name, content in alone.items():
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(content)
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", begun_meanwhile)
    check_folder(Folder.of(out))


def test_a_strangers_folder_is_one_still(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        check_folder(Folder.of(tmp_path))


def test_a_finished_shard_is_let_go_of(command: Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A system has so many locks; a dump may have more shards."""
    held: list[set[int]] = []
    monkeypatch.setattr(
        annotate_module, "_wait_for_others", lambda plan, claims, progress: held.append(set(claims.held))
    )
    annotate(prepare(dataclasses.replace(command, out=tmp_path / "dump")))
    assert held == [set()]


def test_a_shard_that_another_finished_since_we_looked_is_not_made_again(
    command: Request, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was missing at first sight; by the time it is claimed, its process has let go of it, finished."""
    request = dataclasses.replace(command, out=tmp_path / "dump")
    annotate(prepare(request))
    (request.out / "shards" / "00003.json").unlink()
    times = committed(request.out)
    plan = prepare(request)
    look: Callable[..., list[int]] = annotate_module._missing
    looks = iter([list(range(SHARDS))])
    monkeypatch.setattr(annotate_module, "_missing", lambda plan: next(looks, None) or look(plan))
    assert annotate(plan).made == 1
    assert times.items() <= committed(request.out).items()
    assert contents(request.out) == alone
