"""Which of several processes this is, as launchers say it, and which device that makes its own."""

import pytest
import torch

from shared.errors import UsageError
from teacher_dump.engines.devices import device_named
from teacher_dump.workers import Worker, worker

LAUNCHERS = {
    "torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    "Slurm": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in LAUNCHERS.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)


def launched(monkeypatch: pytest.MonkeyPatch, by: str, *values: str) -> None:
    for name, value in zip(LAUNCHERS[by], values, strict=True):
        monkeypatch.setenv(name, value)


def test_without_a_launcher_a_process_is_alone() -> None:
    assert worker() == Worker(rank=0, local_rank=0, count=1)
    assert worker().label("dump") == "dump"


@pytest.mark.parametrize("by", LAUNCHERS)
def test_every_launcher_is_understood(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, by, "11", "3", "16")
    assert worker() == Worker(rank=11, local_rank=3, count=16)
    assert worker().label("dump") == "dump 12/16"


def test_torchrun_inside_of_slurm_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm starts one torchrun a machine there, which starts the processes."""
    launched(monkeypatch, "Slurm", "1", "0", "2")
    launched(monkeypatch, "torchrun", "11", "3", "16")
    assert worker() == Worker(rank=11, local_rank=3, count=16)


def test_values_of_two_launchers_are_never_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, "Slurm", "1", "0", "2")
    monkeypatch.setenv("RANK", "7")
    assert worker() == Worker(rank=1, local_rank=0, count=2)


@pytest.mark.parametrize(
    "values",
    [
        ("", "", ""),
        ("0", "0", ""),
        ("one", "0", "2"),
        ("-1", "0", "2"),
        ("0.5", "0", "2"),
        ("0", "0", "0"),
        ("2", "0", "2"),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_counts_for_nothing(values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, "torchrun", *values)
    assert worker() == Worker()


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.parametrize("asked", ["auto", "cuda"])
@pytest.mark.parametrize(("local_rank", "device"), [("0", "cuda:0"), ("3", "cuda:3"), ("5", "cuda:1")])
def test_each_process_of_a_machine_has_a_device_of_its_own(
    asked: str, local_rank: str, device: str, four_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where there are more processes than devices, they share them evenly."""
    launched(monkeypatch, "torchrun", "9", local_rank, "16")
    assert device_named(asked) == torch.device(device)


def test_a_process_alone_takes_the_first_device(four_gpus: None) -> None:
    assert device_named("auto") == torch.device("cuda:0")


@pytest.mark.parametrize("asked", ["cpu", "cuda:2"])
def test_a_device_that_is_named_is_taken(asked: str, four_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, "torchrun", "1", "1", "2")
    assert device_named(asked) == torch.device(asked)


def test_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, "torchrun", "1", "1", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_named("auto") == torch.device("cpu")
    for asked in ("cuda", "cuda:0"):
        with pytest.raises(UsageError, match="--device cuda: no CUDA device is available here"):
            device_named(asked)


def test_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_named("auto") == torch.device("mps")


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(UsageError, match="device 'tpuu' cannot be used here"):
        device_named("tpuu")
