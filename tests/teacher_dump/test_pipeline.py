"""Three stages at once: an error in any of them ends the run with its own words, and the next run finishes the work.

Every test here runs the same command over four shards. Something goes wrong with the third of them; the first two are
finished by then or in the making, and what is finished stays.
"""

import copy
import dataclasses
import errno
import json
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

import pytest
import torch

from shared import Dump
from shared.dump import shards
from shared.errors import CorpusError, DumpError, TeacherError
from shared.progress import Progress
from shared.storage import Folder
from shared.text.corpus import Corpus, Example
from shared.text.files import objects
from teacher_dump import annotate as annotate_module
from teacher_dump.annotate import annotate, prepare
from teacher_dump.extract import Encoded
from teacher_dump.plan import Plan
from teacher_dump.request import Request

pytestmark = pytest.mark.usefixtures("no_hang")

ROWS, SHARD_ROWS, SHARDS = 40, 11, 4
BAD_SHARD, BAD_ROW = 2, 30

Patch = pytest.MonkeyPatch


class Case(NamedTuple):
    """A command, and what comes of it undisturbed."""

    request: Request
    undisturbed: dict[str, bytes]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def expected(make_teacher: Any, write_corpus: Any, toy_rows: Any, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("expected")
    request = Request(
        str(make_teacher("sequence-classification")),
        "sequence-classification",
        (str(write_corpus(folder / "corpus.jsonl", toy_rows("sequence-classification", ROWS))),),
        folder / "dump",
        hidden="1",
        max_length=64,
        shard_rows=SHARD_ROWS,
        device="cpu",
        batch_tokens=100,
    )
    annotate(prepare(request))
    return Case(request, contents(folder / "dump"))


@pytest.fixture
def case(expected: Case, tmp_path: Path) -> Case:
    """The same command for another folder, with a corpus that may be spoiled."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(Path(expected.request.data[0]).read_bytes())
    request = dataclasses.replace(expected.request, data=(str(corpus),), out=tmp_path / "dump")
    return Case(request, expected.undisturbed)


def corpus_of(plan: Plan) -> Path:
    return Path(plan.request.data[0])


# --- what goes wrong, stage by stage ---------------------------------------------------------------------------------


class Spoilt(NamedTuple):
    """Something that goes wrong with the third shard, and the error that it must end with."""

    spoil: Callable[[Plan, Patch], Plan]
    error: type[BaseException]
    words: str


def at_shard(plan: Plan, index: int) -> Callable[[Any], bool]:
    """Whether rows (tokenized, or a batch's numbers) belong to a shard."""
    rows = plan.manifest.rows_of_shard(index)
    return lambda number: number in rows


def a_line_that_is_no_json(plan: Plan, patch: Patch) -> Plan:
    lines = corpus_of(plan).read_text().splitlines()
    lines[BAD_ROW] = '{"text": '
    corpus_of(plan).write_text("\n".join(lines))
    return plan


def a_row_without_text(plan: Plan, patch: Patch) -> Plan:
    lines = corpus_of(plan).read_text().splitlines()
    lines[BAD_ROW] = json.dumps({"text": 5})
    corpus_of(plan).write_text("\n".join(lines))
    return plan


def a_corpus_cut_short(rows: int) -> Callable[[Plan, Patch], Plan]:
    def spoil(plan: Plan, patch: Patch) -> Plan:
        lines = corpus_of(plan).read_text().splitlines()
        corpus_of(plan).write_text("\n".join(lines[:rows]))
        return plan

    return spoil


def a_corpus_rewritten(rewrite: Callable[[list[bytes]], list[bytes]]) -> Callable[[Plan, Patch], Plan]:
    """With as many rows, of which those of the third shard are others."""

    def spoil(plan: Plan, patch: Patch) -> Plan:
        path, first = corpus_of(plan), BAD_SHARD * SHARD_ROWS
        lines = path.read_bytes().splitlines(keepends=True)
        lines[first : first + SHARD_ROWS] = rewrite(lines[first : first + SHARD_ROWS])
        path.write_bytes(b"".join(lines))
        return plan

    return spoil


def a_connection_that_breaks(plan: Plan, patch: Patch) -> Plan:
    """Reading fails as a file system does, with an OSError of its own; nothing is wrong with writing."""
    make = objects._parse_object

    def broken(line: str, file: str, number: int) -> Any:
        if number == BAD_ROW:
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out", file)
        return make(line, file, number)

    patch.setattr(objects, "_parse_object", broken)
    return plan


def a_tokenizer_that_fails(plan: Plan, patch: Patch) -> Plan:
    tokenize = plan.task.tokenize

    def fails(how: Any, examples: Any, first_row: int) -> Any:
        if first_row == BAD_SHARD * SHARD_ROWS:
            raise RuntimeError("the tokenizer has lost its merges")
        return tokenize(how, examples, first_row)

    task = copy.copy(plan.task)
    patch.setattr(task, "tokenize", fails)
    return dataclasses.replace(plan, task=task)


def the_teacher_at(plan: Plan, patch: Patch, do: Callable[[Any], Any]) -> Plan:
    """`do` with what the teacher says in the second batch of the third shard."""
    extract, forward = annotate_module.extract_within_memory, plan.engine.teacher.model.forward
    batches, now = iter(range(10**6)), []

    def watched(teacher: Any, manifest: Any, batch: Any, *others: Any) -> Any:
        now[:] = [batch.numbers[0] in manifest.rows_of_shard(BAD_SHARD) and next(batches) == 1]
        yield from extract(teacher, manifest, batch, *others)

    def spoilt(*arguments: Any, **named: Any) -> Any:
        said = forward(*arguments, **named)
        return do(said) if now == [True] else said

    patch.setattr(annotate_module, "extract_within_memory", watched)
    patch.setattr(plan.engine.teacher.model, "forward", spoilt)
    return plan


def a_forward_pass_that_fails(plan: Plan, patch: Patch) -> Plan:
    def fail(said: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    return the_teacher_at(plan, patch, fail)


def a_teacher_that_says_nan(plan: Plan, patch: Patch) -> Plan:
    def spoil(said: Any) -> Any:
        said.logits[0, 1] = torch.nan
        return said

    return the_teacher_at(plan, patch, spoil)


def columns_that_cannot_be_made(plan: Plan, patch: Patch) -> Plan:
    columns, calls = Encoded.columns, iter(range(10**6))
    before = sum(len(list(batches)) for batches in batches_by_shard(plan)[:BAD_SHARD])

    def fails(encoded: Encoded, manifest: Any) -> Any:
        if next(calls) == before + 1:
            raise ValueError("a column of another length")
        return columns(encoded, manifest)

    patch.setattr(Encoded, "columns", fails)
    return plan


def batches_by_shard(plan: Plan) -> list[list[Any]]:
    return [
        list(
            annotate_module.batches_of(
                plan.engine,
                plan.manifest.layout,
                annotate_module.ShardRows.in_order(plan.task.tokenize(plan.how, parse(), first), range(SHARD_ROWS)),
                lambda: 100,
            )
        )
        for _, first, parse in plan.corpus.blocks(SHARD_ROWS)
    ]


def at_the_bad_shard(patch: Patch, name: str, do: Callable[[], None]) -> None:
    """`do` before the function `name` of the module `shards` is called for the third shard."""
    write, function, now = annotate_module.write_shard, getattr(shards, name), []

    def write_shard(folder: Folder, index: int, *others: Any) -> Any:
        now[:] = [index]
        return write(folder, index, *others)

    def spoilt(*arguments: Any) -> Any:
        if now == [BAD_SHARD]:
            do()
        return function(*arguments)

    patch.setattr(annotate_module, "write_shard", write_shard)
    patch.setattr(shards, name, spoilt)


def a_writer_that(error: BaseException, function: str) -> Callable[[Plan, Patch], Plan]:
    def spoil(plan: Plan, patch: Patch) -> Plan:
        def fail() -> None:
            raise error

        at_the_bad_shard(patch, function, fail)
        return plan

    return spoil


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
UNWRITABLE = r"00002\.parquet: cannot be written \(No space left on device\). Finished shards are kept"
CHANGED = "corpus.jsonl: the corpus has changed since this run began"

SPOILT = {
    "corpus, no JSON": Spoilt(a_line_that_is_no_json, CorpusError, "corpus.jsonl, line 31: not valid JSON"),
    "corpus, no text": Spoilt(a_row_without_text, CorpusError, "corpus.jsonl, line 31: column 'text' holds 5"),
    "corpus, a shard cut short": Spoilt(a_corpus_cut_short(25), CorpusError, CHANGED),
    "corpus, two shards gone": Spoilt(a_corpus_cut_short(22), CorpusError, CHANGED),
    "corpus, another text": Spoilt(
        a_corpus_rewritten(lambda lines: [*lines[:-1], json.dumps({"text": "another"}).encode() + b"\n"]),
        CorpusError,
        f"{CHANGED}; rows 22 to 32 are different now",
    ),
    "corpus, another order": Spoilt(a_corpus_rewritten(lambda lines: lines[::-1]), CorpusError, CHANGED),
    "corpus, connection": Spoilt(a_connection_that_breaks, TimeoutError, "Connection timed out"),
    "tokenizer": Spoilt(a_tokenizer_that_fails, RuntimeError, "the tokenizer has lost its merges"),
    "forward": Spoilt(a_forward_pass_that_fails, RuntimeError, "illegal memory access"),
    "encode": Spoilt(a_teacher_that_says_nan, TeacherError, r"row \d+: NaN or infinity in the teacher's logits"),
    "columns": Spoilt(columns_that_cannot_be_made, ValueError, "a column of another length"),
    "table": Spoilt(a_writer_that(ArithmeticError("no table"), "to_table"), ArithmeticError, "no table"),
    "write": Spoilt(a_writer_that(FULL, "to_table"), DumpError, UNWRITABLE),
    "receipt": Spoilt(a_writer_that(FULL, "write_receipt"), DumpError, UNWRITABLE),
    "Ctrl-C while writing": Spoilt(a_writer_that(KeyboardInterrupt(), "to_table"), KeyboardInterrupt, "^$"),
    "Ctrl-C between shards": Spoilt(a_writer_that(KeyboardInterrupt(), "write_receipt"), KeyboardInterrupt, "^$"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_an_error_in_any_stage_ends_the_run_with_its_own_words_and_the_next_run_finishes_it(
    name: str, case: Case, monkeypatch: Patch
) -> None:
    spoil, error, words = SPOILT[name]
    intact, out = corpus_of_bytes(case), case.request.out
    with monkeypatch.context() as patch:
        plan = spoil(prepare(case.request), patch)
        with pytest.raises(error, match=words) as found:
            annotate(plan)
    assert type(found.value) is error
    assert no_stage_is_left()
    # The two shards before it are finished; of this one there is no receipt and nothing half-written.
    assert list(Dump(out).receipts) == [0, 1]
    left = {path.name for path in out.rglob("*") if path.is_file()}
    assert not {file for file in left if file.endswith(".tmp")}
    assert "00002.json" not in left
    assert "00003.parquet" not in left
    finished = written_at(out, "0000[01].*")

    Path(case.request.data[0]).write_bytes(intact)
    assert annotate(prepare(case.request)).made == 2
    assert contents(out) == case.undisturbed
    assert finished.items() <= written_at(out).items(), "a finished shard was written again"
    assert sorted(Dump(out).scan().select("row").collect()["row"]) == list(range(ROWS))


def corpus_of_bytes(case: Case) -> bytes:
    return Path(case.request.data[0]).read_bytes()


def written_at(out: Path, pattern: str = "*") -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((out / "shards").glob(pattern))}


@pytest.fixture(autouse=True)
def _threads_before() -> None:
    """Threads that another test in this process has left are not ours."""
    _before.update(threading.enumerate())


_before: WeakSet[threading.Thread] = WeakSet()


def no_stage_is_left() -> bool:
    return not any(thread.name == "ahead" for thread in threading.enumerate() if thread not in _before)


def test_a_disk_that_is_really_full(case: Case, monkeypatch: Patch) -> None:
    """The system refuses to let the shard's file grow, and Parquet's writer learns of it in its own ways."""
    plan = prepare(case.request)
    write = annotate_module.write_shard
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_shard(folder: Folder, index: int, *others: Any) -> Any:
        try:
            if index == BAD_SHARD:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            return write(folder, index, *others)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patch:
        patch.setattr(annotate_module, "write_shard", write_shard)
        with pytest.raises(DumpError, match=r"00002\.parquet: cannot be written \(.*[Ff]ile too large"):
            annotate(plan)
    assert sorted(written_at(case.request.out)) == ["00000.json", "00000.parquet", "00001.json", "00001.parquet"]
    assert no_stage_is_left()
    assert annotate(prepare(case.request)).made == 2
    assert contents(case.request.out) == case.undisturbed


# --- ending ----------------------------------------------------------------------------------------------------------


class EndlessCorpus(Corpus):
    """The corpus, and after it rows without end, which nobody wants."""

    def blocks(self, block_rows: int) -> Iterator[tuple[int, int, Callable[[], list[Example]]]]:
        yield from super().blocks(block_rows)
        for index in count(SHARDS):
            time.sleep(0.001)
            yield index, index * block_rows, unwanted


def unwanted() -> list[Example]:
    raise AssertionError("parsed, and nobody wants it")


def endless(plan: Plan) -> Plan:
    corpus = EndlessCorpus(plan.request.data, plan.corpus.columns)
    return dataclasses.replace(plan, corpus=corpus)


def test_a_corpus_is_read_no_further_than_the_last_shard_that_is_missing(case: Case) -> None:
    """Of a corpus of days, a run that has one early shard to make good reads that."""
    assert annotate(endless(prepare(case.request))).made == SHARDS
    (case.request.out / "shards" / "00001.json").unlink()
    assert annotate(endless(prepare(case.request))).made == 1
    assert contents(case.request.out) == case.undisturbed


def test_a_failing_writer_does_not_wait_for_rows_that_are_passed_over(case: Case, monkeypatch: Patch) -> None:
    """The last shard is finished by somebody else, and on the way to it the reader passes over most of the corpus."""
    plan = prepare(case.request)
    passing = threading.Event()

    class LongCorpus(Corpus):
        def blocks(self, block_rows: int) -> Iterator[tuple[int, int, Callable[[], list[Example]]]]:
            for index, first, parse in super().blocks(block_rows):
                if index <= BAD_SHARD:
                    yield index, first, parse
            while True:
                passing.set()
                time.sleep(0.001)
                yield 0, 0, unwanted  # claimed already

    def fail() -> None:
        assert passing.wait(30)
        raise FULL

    at_the_bad_shard(monkeypatch, "to_table", fail)
    with pytest.raises(DumpError, match=UNWRITABLE):
        annotate(dataclasses.replace(plan, corpus=LongCorpus(plan.request.data, plan.corpus.columns)))
    assert no_stage_is_left()


def test_stages_are_at_work_at_the_same_time(case: Case, monkeypatch: Patch) -> None:
    """While the first shard waits for its file, the teacher has gone on as far as there is room."""
    plan = prepare(case.request)
    seen: list[int] = []
    extract, write = annotate_module.extract_within_memory, annotate_module.write_shard
    depth = annotate_module.DEPTH

    def watched(teacher: Any, manifest: Any, batch: Any, *others: Any) -> Any:
        for pair in extract(teacher, manifest, batch, *others):
            seen.append(batch.numbers[0])
            yield pair

    def write_shard(folder: Folder, index: int, *others: Any) -> Any:
        if index == 0:  # one batch has been taken to see whose it is
            while len(seen) < 1 + depth:
                time.sleep(0.001)
            assert len(seen) == 1 + depth
        return write(folder, index, *others)

    monkeypatch.setattr(annotate_module, "extract_within_memory", watched)
    monkeypatch.setattr(annotate_module, "write_shard", write_shard)
    assert annotate(plan).made == SHARDS
    assert contents(case.request.out) == case.undisturbed


def test_every_token_is_counted_once(case: Case, monkeypatch: Patch) -> None:
    advanced: list[int] = []
    monkeypatch.setattr(Progress, "advance", lambda progress, count: advanced.append(count))
    plan = prepare(case.request)
    advanced.clear()
    outcome = annotate(plan)
    tokens = sum(receipt.tokens for receipt in Dump(case.request.out).receipts.values())
    assert (outcome.shards, outcome.made, outcome.tokens, sum(advanced)) == (SHARDS, SHARDS, tokens, tokens)
