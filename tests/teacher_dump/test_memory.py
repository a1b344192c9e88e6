"""Where memory runs out, batches get smaller: no row is lost, repeated or moved."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from shared import Dump
from shared.dump.layouts import LAYOUTS
from shared.errors import TeacherError
from teacher_dump.annotate import annotate, prepare
from teacher_dump.batching import memory
from teacher_dump.batching.memory import MOST_TOKENS, USED_SHARE, Budget, largest_batch
from teacher_dump.batching.rows import cut_batches
from teacher_dump.cli import app
from teacher_dump.engines.devices import DEFAULT_TOKENS, DeviceMemory, is_out_of_memory
from teacher_dump.request import Request, _tokens_or_auto

pytestmark = pytest.mark.usefixtures("no_hang")

ROWS, SHARD_ROWS = 60, 16
WHOLE, FITS = 400, 100

# How devices say it.
WORDS: dict[str, Callable[[], BaseException]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
    "mps": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)."),
    "host": MemoryError,
}

# All that the budget asks a manifest.
A_MANIFEST: Any = SimpleNamespace(layout=LAYOUTS["row"])


class Run(NamedTuple):
    """A run on a device that holds `FITS` tokens a batch."""

    dump: Dump
    batches: list[int]  # tokens with padding, in the order in which they were tried
    said: list[str]


@pytest.fixture(scope="module")
def request_(
    make_teacher: Any, write_corpus: Any, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Request:
    folder = tmp_path_factory.mktemp("memory")
    return Request(
        str(make_teacher("causal-lm")), "causal-lm", (str(write_corpus(folder / "corpus.jsonl", texts[:ROWS])),),
        folder / "undisturbed", top_k=5, hidden="last", max_length=64, shard_rows=SHARD_ROWS, device="cpu",
        batch_tokens=WHOLE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(request_: Request) -> Dump:
    annotate(prepare(request_))
    return Dump(request_.out)


def padded(batch: Any) -> int:
    return batch.inputs["input_ids"].numel()


def run_with(
    request: Request, out: Path, error: Callable[[], BaseException], monkeypatch: pytest.MonkeyPatch, fits: int = FITS
) -> Run:
    plan = prepare(dataclasses.replace(request, out=out))
    extract, batches, said = memory.extract, [], []

    def extract_if_it_fits(teacher: Any, manifest: Any, batch: Any) -> Any:
        batches.append(padded(batch))
        if padded(batch) > fits:
            raise error()
        return extract(teacher, manifest, batch)

    monkeypatch.setattr(memory, "extract", extract_if_it_fits)
    monkeypatch.setattr("shared.progress.Progress.say", lambda progress, line: said.append(line))
    annotate(plan)
    return Run(Dump(out), batches, said)


def exact(dump: Dump) -> list[pl.DataFrame]:
    """All that must not depend on batches: row by row and position by position, in their order in the shards."""
    return [
        dump.scan().select("row", "input_ids").collect(),
        dump.positions().select("row", "position", "token_id", "label", "ids").collect(),
    ]


@pytest.mark.parametrize("device", WORDS)
def test_every_row_is_there_once_with_its_own_values(
    device: str, request_: Request, undisturbed: Dump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run_with(request_, tmp_path / "dump", WORDS[device], monkeypatch)
    assert max(found.batches) > FITS, "memory never ran out"
    assert sorted(found.dump.scan().select("row").collect()["row"]) == list(range(ROWS))
    for mine, theirs in zip(exact(found.dump), exact(undisturbed), strict=True):
        assert mine.equals(theirs)
    for column in ("log_probs", "tail"):
        frames = [dump.positions().select(pl.col(column)).collect()[column] for dump in (found.dump, undisturbed)]
        values = [(each.explode() if each.dtype == pl.List else each).to_numpy() for each in frames]
        np.testing.assert_allclose(*values, atol=5e-3)
    vectors = [dump.vectors("hidden.2").collect()["vector"].explode().to_numpy() for dump in (found.dump, undisturbed)]
    np.testing.assert_allclose(*vectors, atol=5e-3)
    assert found.dump.verify() == []
    cuts = [[receipt.row_groups for receipt in dump.receipts.values()] for dump in (found.dump, undisturbed)]
    assert cuts[0] == cuts[1]


def test_what_is_cut_later_fits_and_it_is_said(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that lay ready already are halved; those that are cut afterwards fit at once."""
    found = run_with(request_, tmp_path / "dump", WORDS["cuda"], monkeypatch)
    failed = [index for index, tokens in enumerate(found.batches) if tokens > FITS]
    assert len(found.said) == len(failed)
    assert found.said[0].startswith("memory ran out at ")
    assert found.said[0].endswith(" tokens a batch; continuing with " + found.said[0].split()[-1])
    assert len(found.batches) > failed[-1] + 10, "nothing is left that would show it"
    # At most those that lay between the stages, each halved two or three times.
    assert len(failed) < 7 * (2 + 4)


def test_later_batches_use_what_there_is(request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget goes down to what fits and no further: a quarter of it would be slow for days."""
    found = run_with(request_, tmp_path / "dump", WORDS["cuda"], monkeypatch)
    last = int(found.said[-1].split()[-1].replace(",", ""))
    assert FITS / 4 <= last <= FITS
    assert min(int(line.split()[-1].replace(",", "")) for line in found.said) == last


def test_a_row_that_does_not_fit_by_itself_is_named(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = [
        *map(len, (row.input_ids for row in prepare(dataclasses.replace(request_, out=tmp_path / "x")).sampled_rows[1]))
    ]
    longest = int(np.argmax(corpus[:SHARD_ROWS]))
    sentence = (
        rf"row {longest}: its {corpus[longest]} tokens do not fit into the memory of cpu; use a smaller --max-length"
    )
    out = tmp_path / "dump"
    with pytest.raises(TeacherError, match=sentence):
        run_with(request_, out, WORDS["cuda"], monkeypatch, fits=corpus[longest] - 1)
    assert not (out / "shards" / "00000.json").exists()


def test_another_error_is_not_taken_for_it(request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other() -> BaseException:
        return RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert triggered"):
        run_with(request_, tmp_path / "dump", other, monkeypatch)


@pytest.mark.parametrize("device", WORDS)
def test_how_devices_say_it(device: str) -> None:
    assert is_out_of_memory(WORDS[device]())


@pytest.mark.parametrize(
    "other", [RuntimeError("shape mismatch"), ValueError("out of range"), RuntimeError("")], ids=repr
)
def test_what_is_not_it(other: BaseException) -> None:
    assert not is_out_of_memory(other)


# --- the budget ------------------------------------------------------------------------------------------------------


def teacher_on(device: str) -> Any:
    return SimpleNamespace(memory=DeviceMemory(torch.device(device)), batch=lambda rows, numbers: rows)


@pytest.mark.parametrize("device", ["cuda", "mps", "cpu"])
def test_each_device_has_its_default(device: str) -> None:
    assert Budget(None, teacher_on(device))() == DEFAULT_TOKENS[device]
    assert Budget(77, teacher_on(device))() == 77


def test_an_unknown_device_gets_the_most_careful_default() -> None:
    assert Budget(None, teacher_on("xla"))() == min(DEFAULT_TOKENS.values())


@given(st.integers(1, 10**6), st.lists(st.integers(1, 10**6), max_size=20))
def test_the_budget_only_ever_shrinks_and_never_to_nothing(tokens: int, failed: list[int]) -> None:
    budget = Budget(tokens, teacher_on("cpu"))
    for each in failed:
        before = budget()
        budget.shrink(each)
        assert 1 <= budget() <= before
        assert budget() <= max(1, each // 2)


GIB = 2**30


@given(
    weights=st.integers(0, 100 * GIB),
    bytes_per_token=st.integers(1, 10**8),  # whole bytes, of which nothing is rounded away
    usable=st.integers(1, 200 * GIB),
    longest=st.integers(1, 40_000),
)
def test_a_batch_of_the_size_found_takes_its_share_of_the_memory(
    weights: int, bytes_per_token: int, usable: int, longest: int
) -> None:
    """For any device on which what a batch takes grows evenly, and rows of any length."""

    def peak_bytes(tokens: int) -> int:
        whole_rows = max(1, tokens // longest)
        return weights + bytes_per_token * whole_rows * longest

    found = largest_batch(peak_bytes, usable, longest)
    least = max(1, memory.PROBE_TOKENS // longest) * longest
    assert min(least, MOST_TOKENS) <= found <= MOST_TOKENS
    takes = weights + bytes_per_token * found
    if found > least:
        assert takes <= USED_SHARE * usable + 2 * bytes_per_token + 1
    if found < MOST_TOKENS and found > least:
        assert takes >= USED_SHARE * usable - 2 * bytes_per_token - 1


def test_memory_that_does_not_grow_with_the_batch_is_no_division_by_zero() -> None:
    assert largest_batch(lambda tokens: 10**6, 10**12, 64) == MOST_TOKENS


def test_a_device_that_is_full_with_the_probe_gets_no_more_than_that() -> None:
    assert largest_batch(lambda tokens: 1000 * tokens, 10, 64) == memory.PROBE_TOKENS


class Gpu:
    """A CUDA device as torch.cuda shows it, which holds so many tokens of a batch."""

    def __init__(self, holds: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.holds, self.tried, self.peak = holds, [], 0
        each = 1000
        patches = {
            "mem_get_info": lambda device: (holds * each, 2 * holds * each),
            "memory_reserved": lambda device: 0,
            "reset_peak_memory_stats": lambda device: setattr(self, "peak", 0),
            "max_memory_allocated": lambda device: self.peak,
            "empty_cache": lambda: None,
        }
        for name, function in patches.items():
            monkeypatch.setattr(torch.cuda, name, function)

        def extract(teacher: Any, manifest: Any, rows: Any) -> None:
            tokens = sum(len(row.input_ids) for row in rows)
            self.tried.append(tokens)
            if tokens > holds:
                raise WORDS["cuda"]()
            self.peak = each * tokens

        monkeypatch.setattr(memory, "extract", extract)


@pytest.mark.parametrize("length", [1, 64, 512, 3000, 5000])
def test_the_budget_is_fitted_to_a_gpu_whatever_the_length_of_rows(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that rounds to the same one row twice would find that tokens take nothing."""
    Gpu(50_000, monkeypatch)
    budget = Budget(None, teacher_on("cuda"))
    budget.fit(teacher_on("cuda"), A_MANIFEST, SimpleNamespace(input_ids=[0] * length))  # type: ignore[arg-type]
    assert budget() == pytest.approx(USED_SHARE * 50_000, rel=0.01)


def test_a_gpu_too_small_for_the_probe_keeps_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(1000, monkeypatch)
    budget = Budget(None, teacher_on("cuda"))
    budget.fit(teacher_on("cuda"), A_MANIFEST, SimpleNamespace(input_ids=[0] * 64))  # type: ignore[arg-type]
    assert gpu.tried
    assert budget() == DEFAULT_TOKENS["cuda"]


@pytest.mark.parametrize("device", WORDS)
def test_whatever_a_device_calls_it_the_default_is_kept(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(1000, monkeypatch)
    monkeypatch.setattr(memory, "extract", lambda *_: (_ for _ in ()).throw(WORDS[device]()))
    budget = Budget(None, teacher_on("cuda"))
    budget.fit(teacher_on("cuda"), A_MANIFEST, SimpleNamespace(input_ids=[0] * 64))  # type: ignore[arg-type]
    assert budget() == DEFAULT_TOKENS["cuda"]


def test_another_error_of_the_probe_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(1000, monkeypatch)
    monkeypatch.setattr(memory, "extract", lambda *_: (_ for _ in ()).throw(RuntimeError("device-side assert")))
    with pytest.raises(RuntimeError, match="device-side assert"):
        Budget(None, teacher_on("cuda")).fit(teacher_on("cuda"), A_MANIFEST, SimpleNamespace(input_ids=[0] * 64))  # type: ignore[arg-type]


def test_each_batch_is_cut_by_the_budget_as_it_is_then() -> None:
    """Of a shard of a million tokens only what lay ready already is too large."""
    budgets = iter([40, 10, 20])
    assert list(cut_batches([10] * 7, lambda: next(budgets))) == [slice(0, 4), slice(4, 5), slice(5, 7)]


# --- the option ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "tokens"), [("auto", None), ("1", 1), ("4096", 4096)])
def test_batch_tokens_is_a_number_or_auto(text: str, tokens: int | None) -> None:
    assert _tokens_or_auto(text) == tokens


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1.5", "Auto"])
def test_batch_tokens_that_make_no_sense_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=f"{text!r} is neither auto nor a number from 1"):
        _tokens_or_auto(text)
    command = [
        "--teacher",
        "t",
        "--task",
        "encoder",
        "--data",
        "d",
        "--out",
        str(tmp_path / "o"),
        f"--batch-tokens={text}",
    ]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 2
    assert "neither auto nor a number" in " ".join(answer.output.split())
