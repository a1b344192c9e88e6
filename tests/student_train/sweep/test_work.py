"""Jobs run at the same time as the machine allows: a failure does not stop the others, an interruption ends all."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from student_train.sweep import machine as machines
from student_train.sweep import work
from student_train.sweep.children import Child
from student_train.sweep.folder import cost_of
from student_train.sweep.machine import Machine, machine_for
from student_train.sweep.work import Job, work_through

ONE, TWO = Machine(jobs=1, threads=1), Machine(jobs=2, threads=1)
pytestmark = pytest.mark.usefixtures("no_hang")


@pytest.fixture(autouse=True)
def _python_in_place_of_distill(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(job: Job, output: Path, environment: dict[str, str]) -> Child:
        return Child([sys.executable, "-c", *job.arguments], work.log_of(output, job.name), environment)

    monkeypatch.setattr(work, "_start", start)


def job(name: str, code: str) -> Job:
    return Job(name, (code,), lambda: "accuracy 0.5")


def test_a_failure_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    jobs = [job("a", ""), job("b", "raise SystemExit('error: no such dump.')"), job("c", "")]
    assert work_through(jobs, tmp_path, ONE) == {"b": "no such dump."}
    printed = capsys.readouterr().err
    assert "a: accuracy 0.5" in printed
    assert "b: failed: no such dump." in printed
    assert "c: accuracy 0.5" in printed


def test_attempts_add_up(tmp_path: Path) -> None:
    for _ in range(2):
        work_through([job("a", "import time\nwhile time.process_time() < 0.2: pass")], tmp_path, ONE)
    cost = cost_of(tmp_path, "a")
    assert cost.attempts == 2
    assert cost.cpu_seconds > 0.4
    assert (tmp_path / "logs" / "a.log").read_text().count("$ ") == 2


def meeting(folder: Path, name: str, other: str) -> Job:
    """A job that ends once the other one is running."""
    code = f"import pathlib, time\nhere = pathlib.Path({str(folder)!r})\n(here / {name!r}).touch()\n"
    return job(name, f"{code}while not (here / {other!r}).exists(): time.sleep(0.01)")


def test_two_are_at_work_at_once(tmp_path: Path) -> None:
    jobs = [meeting(tmp_path, "a", "b"), meeting(tmp_path, "b", "a")]
    assert work_through(jobs, tmp_path, TWO) == {}


def test_where_memory_is_short_one_comes_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(work, "has_room", lambda peak: bool(asked.append(peak)))
    stamp = "import pathlib, time\nprint('start', time.time())\ntime.sleep(0.2)\nprint('end', time.time())"
    work_through([job(name, stamp) for name in "abc"], tmp_path, TWO)
    lines = [(tmp_path / "logs" / f"{name}.log").read_text().splitlines()[-2:] for name in "abc"]
    times = [float(line.split()[1]) for pair in lines for line in pair]
    assert times == sorted(times)
    assert max(asked) > 1_000_000  # what the first took decides about the next


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_whatever_ends_the_sweep_ends_its_children(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = "import os, pathlib, time\npathlib.Path({!r}).write_text(str(os.getpid()))\ntime.sleep(60)"
    files = [tmp_path / name for name in "ab"]
    waited = time.sleep

    def look(seconds: float) -> None:
        if all(file.exists() and file.read_text() for file in files):
            monkeypatch.setattr(time, "sleep", waited)
            raise error
        waited(seconds)

    monkeypatch.setattr(time, "sleep", look)
    with pytest.raises(error):
        work_through([job(file.name, write.format(str(file))) for file in files], tmp_path, TWO)
    for file in files:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)
        assert json.loads((tmp_path / "logs" / f"{file.name}.json").read_text())["attempts"] == 1


def test_each_core_or_device_gets_a_job(monkeypatch: pytest.MonkeyPatch, make_recipe: Callable[..., object]) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machines.torch.cuda, "device_count", lambda: 2)
    here, anywhere = make_recipe(device="cpu"), make_recipe(device="auto")
    assert machine_for([here] * 20, None) == Machine(8, 1)
    assert machine_for([here] * 3, None) == Machine(3, 2)
    assert machine_for([here] * 20, 2) == Machine(2, 4)
    assert machine_for([anywhere] * 20, None) == Machine(2, 4, ("0", "1"))
    four = machine_for([anywhere] * 20, 4)
    assert [four.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["0", "1", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert machine_for([anywhere] * 20, None).devices == ("3", "5")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine_for([here] * 20, None).environment(0) == {"OMP_NUM_THREADS": "3"}


@pytest.fixture
def make_recipe() -> Callable[..., object]:
    from student_train.recipe.recipe import Recipe

    def make(device: str) -> Recipe:
        return Recipe.model_validate(
            {
                "output": "a",
                "dump": "b",
                "student": {"kind": "bilstm", "embedding_size": 8, "hidden_size": 8},
                "loss": [{"kind": "kl"}],
                "training": {"epochs": 1, "device": device},
            }
        )

    return make
