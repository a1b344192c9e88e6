"""Several ranks train the student that one would have trained, write its folder once, and fail together."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import TrainerCallback
from typer.testing import CliRunner

from shared.errors import LecternError, RecipeError
from shared.storage.files import only_one
from shared.text.tasks import TASKS
from student_train import distill
from student_train.cli import app
from student_train.recipe.recipe import Recipe
from student_train.training import log as training_log
from student_train.training import ranks, stage_run
from student_train.training.trainer import DistillationTrainer

TRANSFORMER = {"kind": "transformer", "layers": 1, "hidden_size": 16, "heads": 2}
KL, GOLD = {"kind": "kl"}, {"kind": "gold", "weight": 0.5}
RELATIONS = {"kind": "relations", "relation_heads": 2}
HIDDEN = {"kind": "hidden", "teacher_layer": 2, "student_layer": -1, "weight": 0.2}
TASK = "sequence-classification"
# What is added in another order differs by float noise, which Adam may make larger.
NOISE = 2e-5

SECONDS_TO_END = 200


@pytest.fixture(scope="module")
def dumps(make_dump: Callable[..., Path], toy_rows: Callable[..., Any]) -> dict[str, Path]:
    """60 rows of very different lengths, some without a gold label."""
    tasks = (TASK, "causal-lm")
    return {task: make_dump(task, data=toy_rows(task), hidden="2", relations="last") for task in tasks}


def recipe(output: Path, dump: Path, *losses: dict[str, Any], **training: Any) -> Recipe:
    student = {**TRANSFORMER, "dropout": training.pop("dropout", 0.0)}
    training = {"max_steps": 4, "learning_rate": 1e-2, "warmup": 0.0, "log_steps": 1, "device": "cpu"} | training
    return Recipe.model_validate(
        {"output": output, "dump": dump, "student": student, "loss": losses, "training": training}
    )


class Recorder(TrainerCallback):
    """Keeps what the Trainer logs to its trackers on rank 0, in a file, which remains after a forked process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stage_run, "ProgressReport", lambda label, *_: Recorder(tmp_path / f"{label}.jsonl"))


def logs(made: Recipe) -> list[dict[str, float]]:
    """What was logged at every step."""
    lines = made.output.with_suffix(".jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


def on_ranks(count: int, work: Callable[[], Any]) -> list[int]:
    """Let `count` forked processes do the same, as a launcher starts them; their exit codes."""
    with socket.socket() as held:
        # While we hold the port, the system gives it to nobody who asks for any; rank 0 may still listen there.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        return _on_ranks(count, work, held.getsockname()[1])


def _on_ranks(count: int, work: Callable[[], Any], port: int) -> list[int]:
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            os.environ |= {name: str(value) for name, value in names.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
            code = 1
            try:
                work()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            except LecternError as error:
                print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
                code = error.exit_code
            finally:
                os._exit(code)
        children.append(child)
    return [_code(child) for child in children]


def _code(child: int) -> int:
    """Its exit code; it is killed, and the test fails, when it does not end."""
    deadline = time.monotonic() + SECONDS_TO_END
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("a rank hung")


def weights(folder: Path, task: str) -> dict[str, torch.Tensor]:
    return dict(getattr(transformers, TASKS[task].auto_class).from_pretrained(folder).state_dict())


def distance(one: Recipe, other: Recipe, task: str) -> float:
    first, second = weights(one.output, task), weights(other.output, task)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("task", [TASK, "causal-lm"])
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_train_the_student_of_one(
    task: str, count: int, dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 59 rows and 1, which only one rank has; rows of 1 to 64 positions; a trained projection.

    The log lines are the same, too, with a clock that goes one second from line to line and all positions compared.
    """
    monkeypatch.setattr(training_log, "time", types.SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr(training_log, "COMPARED_POSITIONS", 10_000)
    seconds = itertools.count()

    def made(name: str) -> Recipe:
        return recipe(tmp_path / name, dumps[task], KL, GOLD, HIDDEN, batch_size=59, gradient_accumulation=2)

    alone, together = made("alone"), made("together")
    distill.run(alone, resume=False)
    assert on_ranks(count, lambda: distill.run(together, resume=False)) == [0] * count
    assert distance(alone, together, task) < NOISE
    assert files(alone.output) == files(together.output)
    names = ("loss", "loss/kl", "loss/gold", "loss/hidden.2", "learning_rate", "agreement", "tokens_per_second")
    assert [line["step"] for line in logs(together)] == [1, 2, 3, 4]
    for one, other in zip(logs(alone), logs(together), strict=True):
        assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names}, rel=1e-4)


def test_each_rank_drops_out_units_of_its_own(
    dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DistillationTrainer.compute_loss

    def draw(*arguments: Any, **options: Any) -> Any:
        (tmp_path / f"drawn-{os.environ['RANK']}").write_text(str(torch.rand(1, dtype=torch.float64).item()))
        return original(*arguments, **options)

    monkeypatch.setattr(DistillationTrainer, "compute_loss", draw)
    made = recipe(tmp_path / "a", dumps[TASK], KL, max_steps=1)
    assert on_ranks(2, lambda: distill.run(made, resume=False)) == [0, 0]
    assert (tmp_path / "drawn-0").read_text() != (tmp_path / "drawn-1").read_text()


@pytest.mark.parametrize("loss", [{**HIDDEN, "student_layer": 0}, RELATIONS], ids=["hidden", "relations"])
def test_parameters_that_no_loss_reaches_stay_as_they_are(
    loss: dict[str, Any], dumps: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing above the embeddings, or above the last layer's attention, is trained here."""

    def made(name: str) -> Recipe:
        return recipe(tmp_path / name, dumps[TASK], loss, max_steps=2)

    distill.run(made("alone"), resume=False)
    assert on_ranks(2, lambda: distill.run(made("together"), resume=False)) == [0, 0]
    assert distance(made("alone"), made("together"), TASK) < NOISE


@pytest.mark.parametrize("task", [TASK, "causal-lm"])
def test_accumulated_batches_are_one_big_batch(task: str, dumps: dict[str, Path], tmp_path: Path) -> None:
    """The 60 rows at once, or sorted by length in four unequal batches, with gold labels in some rows only."""

    def made(name: str, **training: Any) -> Recipe:
        return recipe(tmp_path / name, dumps[task], KL, GOLD, HIDDEN, max_steps=3, **training)

    whole, parts = made("whole", batch_size=60), made("parts", batch_size=17, gradient_accumulation=4)
    for one in (whole, parts):
        distill.run(one, resume=False)
    assert distance(whole, parts, task) < NOISE
    for one, other in zip(logs(whole), logs(parts), strict=True):
        names = ("loss", "loss/kl", "loss/gold", "loss/hidden.2")
        assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names}, rel=1e-4)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_ranks_go_through_the_stages_of_one(metric: str, dumps: dict[str, Path], tmp_path: Path) -> None:
    """Held-out rows divided among them, one more for one than for the other; the same best step on all of them."""

    def made(name: str) -> Recipe:
        plain = recipe(tmp_path / name, dumps[TASK], KL, max_steps=4, batch_size=8).model_dump(by_alias=True)
        stages = [
            {"name": "representation", "loss": [HIDDEN]},
            {"name": "logits", "loss": [KL], "trainable": 1},
            {"name": "gold", "loss": [GOLD], "rows": "labelled"},
        ]
        validation = {"share": 0.3, "every_steps": 1, "metric": metric}
        return Recipe.model_validate({**plain, "loss": (), "stage": stages, "validation": validation})

    alone, together = made("alone"), made("together")
    distill.run(alone, resume=False)
    assert on_ranks(2, lambda: distill.run(together, resume=False)) == [0, 0]
    assert distance(alone, together, TASK) < NOISE
    one, other = (json.loads((each.output / "stages.json").read_text()) for each in (alone, together))
    for first, second in zip(one, other, strict=True):
        assert (first["name"], first["steps"], first["best_step"]) == (
            second["name"],
            second["steps"],
            second["best_step"],
        )
        assert first["best_score"] == pytest.approx(second["best_score"], rel=1e-4)


# ---------------------------------------------------------------- failing, resuming


def kill_rank_1(monkeypatch: pytest.MonkeyPatch, call: str, at: int) -> None:
    """SIGKILL for rank 1 when a method of its trainer is called for the `at`-th time."""
    original, calls = getattr(DistillationTrainer, call), [0]

    def deadly(self: Any, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == at and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments, **options)

    monkeypatch.setattr(DistillationTrainer, call, deadly)


@pytest.mark.parametrize(
    ("call", "at", "kept"),
    [
        ("compute_loss", 15, "checkpoint-6"),  # in the second half of step 8
        ("_save_rng_state", 2, "checkpoint-3"),  # while checkpoint 6 was written: rank 1 has no part in it yet
    ],
)
def test_a_killed_rank_ends_the_others_and_all_go_on_to_the_same_weights(
    call: str, at: int, kept: str, dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, which is another on each rank, and accumulation."""

    def made(name: str) -> Recipe:
        options = {"max_steps": 9, "save_steps": 3, "gradient_accumulation": 2, "batch_size": 8, "dropout": 0.2}
        return recipe(tmp_path / name, dumps[TASK], KL, HIDDEN, **options)

    assert on_ranks(2, lambda: distill.run(made("undisturbed"), resume=False)) == [0, 0]
    with monkeypatch.context() as patch:
        kill_rank_1(patch, call, at)
        first, second = on_ranks(2, lambda: distill.run(made("killed"), resume=False))
    assert first == 1
    assert second == -signal.SIGKILL
    checkpoints = made("killed").output / "checkpoints"
    assert max(path.parent.name for path in checkpoints.glob("*/*/trainer_state.json")) == kept
    assert on_ranks(2, lambda: distill.run(made("killed"), resume=False)) == [2, 2]
    assert on_ranks(2, lambda: distill.run(made("killed"), resume=True)) == [0, 0]
    assert distance(made("undisturbed"), made("killed"), TASK) == 0.0
    assert files(made("undisturbed").output) == files(made("killed").output)


def test_what_fails_on_one_rank_ends_all_and_is_said_once(
    dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = distill.open_source

    def unlucky(made: Recipe) -> Any:
        if os.environ["RANK"] == "1":
            raise RecipeError("only rank 1 sees this")
        return original(made)

    monkeypatch.setattr(distill, "open_source", unlucky)
    made = recipe(tmp_path / "a", dumps[TASK], KL)
    assert on_ranks(2, lambda: distill.run(made, resume=False)) == [2, 2]
    assert re.findall("rank .*", capfd.readouterr().err) == ["rank 0: only rank 1 sees this"]
    assert not made.output.exists()


def test_a_folder_in_use_is_refused_on_all_ranks(
    dumps: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = recipe(tmp_path / "a", dumps[TASK], KL)
    made.output.mkdir()
    with only_one(made.output):
        assert on_ranks(2, lambda: distill.run(made, resume=False)) == [2, 2]
    assert len(re.findall("another run is at work", capfd.readouterr().err)) == 1
    assert files(made.output) == set()


def test_processes_that_cannot_meet_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ranks, "PartialState", lambda **_: None)
    with pytest.raises(LecternError, match="2 processes were started, but they cannot train together"):
        ranks.join("auto")


def test_weights_split_over_devices_are_refused(
    dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher says so, and Accelerate would obey where there are GPUs."""
    original = DistillationTrainer.create_accelerator_and_postprocess

    def split(self: Any) -> None:
        original(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(DistillationTrainer, "create_accelerator_and_postprocess", split)
    made = recipe(tmp_path / "a", dumps[TASK], KL)
    with pytest.raises(RecipeError, match="asks for FSDP or DeepSpeed"):
        distill.run(made, resume=False)
    assert not made.output.exists()


# ---------------------------------------------------------------- torchrun


def test_torchrun_trains_saves_scores_and_speaks_once(
    dumps: dict[str, Path],
    write_corpus: Callable[..., Path],
    toy_rows: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held_out = write_corpus(tmp_path / "held_out.jsonl", toy_rows(TASK))
    (tmp_path / "recipe.toml").write_text(
        f"""
        output = "{tmp_path / "student"}"
        dump = "{dumps[TASK]}"
        student = {{ kind = "transformer", layers = 1, hidden_size = 16, heads = 2 }}
        loss = [{{ kind = "kl" }}]
        eval = {{ data = ["{held_out}"] }}
        training = {{ max_steps = 3, batch_size = 8, log_steps = 1, device = "auto" }}
        """
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "student_train.cli", "run", str(tmp_path / "recipe.toml"), "--resume"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stderr
    assert re.findall(r"step (./3)  kl", first.stderr) == ["1/3", "2/3", "3/3"]
    assert "Warning" not in first.stderr
    assert len(re.findall("trained for 3 steps", first.stdout)) == 1
    assert len(re.findall("accuracy", first.stdout)) == 1
    assert (tmp_path / "student" / "metrics.json").exists()
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        again = CliRunner().invoke(app, command[-3:])
        assert again.output.count("is already finished") == lines
