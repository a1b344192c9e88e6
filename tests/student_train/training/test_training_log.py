"""What a run logs: each value against a plain computation, in the printed line and in the trackers."""

import math
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import transformers
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from shared import Dump, progress
from shared.dump.codecs import DenseTargets, SparseTargets
from shared.errors import RecipeError
from shared.progress import Progress
from shared.text.tasks import TASKS
from student_train import distill
from student_train.data.batches import TrainingBatches
from student_train.data.sources import DumpSource
from student_train.forward.outputs import Outputs
from student_train.recipe.recipe import Recipe
from student_train.scoring.agreement import agreement_of
from student_train.training import log as training_log
from student_train.training import stage_run
from student_train.training.log import COMPARED_POSITIONS, Account, compare, line

KL = {"kind": "kl"}
TASK = "sequence-classification"


@pytest.fixture(scope="module")
def dumps(make_dump: Callable[..., Path], toy_rows: Callable[..., Any]) -> dict[str, Path]:
    return {task: make_dump(task, data=toy_rows(task), hidden="2") for task in (TASK, "causal-lm")}


def recipe(output: Path, dump: Path, *losses: dict[str, Any], **training: Any) -> Recipe:
    training = {"max_steps": 4, "learning_rate": 1e-3, "log_steps": 2, "device": "cpu"} | training
    student = {"kind": "transformer", "layers": 1, "hidden_size": 16, "heads": 2, "dropout": 0.0}
    return Recipe.model_validate(
        {"output": output, "dump": dump, "student": student, "loss": losses, "training": training}
    )


class Tracker(TrainerCallback):
    """Keeps what every tracker gets."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self.seen.append({"step": state.global_step, **logs})


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe], list[dict[str, float]]]:
    """Run a recipe; what its trackers got at each line, without the Trainer's summary at the end."""

    def run(made: Recipe) -> list[dict[str, float]]:
        tracker = Tracker()
        with monkeypatch.context() as patch:
            patch.setattr(stage_run, "ProgressReport", lambda *_: tracker)
            distill.run(made, resume=False)
        return [seen for seen in tracker.seen if "loss" in seen]

    return run


# ---------------------------------------------------------------- comparing distributions


def sparse_targets(teacher_NV: torch.Tensor) -> SparseTargets:
    """The first three ids exactly, a fourth that represents the tail; in the first row one exact id fewer."""
    log_probs_NV = teacher_NV.log_softmax(-1)
    log_probs_NK, ids_NK = log_probs_NV.topk(4)
    log_probs_NK[0, 2] = -math.inf
    sampled_NK = torch.zeros_like(ids_NK, dtype=torch.bool)
    sampled_NK[:, 3] = True
    exact_NK = log_probs_NK.masked_fill(sampled_NK, -math.inf)
    tail_N = (1 - exact_NK.exp().sum(-1)).log()
    log_probs_NK[:, 3] = tail_N
    return SparseTargets(ids_NK, log_probs_NK, tail_N, sampled_NK)


def test_compare_sums_agreement_and_masses_over_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher_NV, student_NV = torch.randn(2, 40, 12, generator=generator, dtype=torch.float64).unbind()
    student_NV[:20] = teacher_NV[:20] + 0.1
    targets = sparse_targets(teacher_NV)
    agreed, kept, student_tail = 0, 0.0, 0.0
    for row, (p, q) in enumerate(zip(teacher_NV.softmax(-1), student_NV.softmax(-1), strict=True)):
        best = p.argsort(descending=True)[: 2 if row == 0 else 3].tolist()
        agreed += int(q.argmax()) == best[0]
        kept += sum(float(p[token]) for token in best)
        student_tail += 1 - sum(float(q[token]) for token in best)
    sums = {name: float(value) for name, value in compare(Outputs(student_NV, ()), targets).items()}
    assert 20 <= agreed < 40
    assert sums == pytest.approx(
        {
            "positions": 40,
            "agreement": agreed,
            "kept_mass": kept,
            "teacher_tail": 40 - kept,
            "student_tail": student_tail,
        },
        rel=1e-5,
    )


def test_nothing_is_outside_of_whole_distributions() -> None:
    logits_NV = torch.eye(5)
    sums = compare(Outputs(logits_NV, ()), DenseTargets(logits_NV.roll(1, 0)))
    assert {name: float(value) for name, value in sums.items()} == {"positions": 5, "agreement": 0}
    assert float(compare(Outputs(logits_NV, ()), DenseTargets(logits_NV))["agreement"]) == 5


@pytest.mark.parametrize("positions", [0, 1, 64, 65, 1000])
def test_compare_takes_a_few_positions_all_over_the_batch(positions: int) -> None:
    """The student is right in the second half alone."""
    teacher_NV = torch.zeros(positions, 4)
    teacher_NV[:, 1] = 1.0
    student_NV = teacher_NV.clone()
    student_NV[: positions // 2, 2] = 2.0
    sums = compare(Outputs(student_NV, ()), DenseTargets(teacher_NV))
    compared, agreed = float(sums["positions"]), float(sums["agreement"])
    assert min(positions, COMPARED_POSITIONS // 2) <= compared <= COMPARED_POSITIONS
    assert agreed == pytest.approx(compared / 2, abs=1)


def test_a_head_of_another_width_than_the_teachers_is_compared_like_any() -> None:
    teacher_NV = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
    teacher_NV[:, 8:] = -100.0
    sums = compare(Outputs(torch.zeros(6, 8), ()), sparse_targets(teacher_NV))
    assert float(sums["student_tail"]) == pytest.approx(5 * 5 / 8 + 6 / 8)


# ---------------------------------------------------------------- adding up


def test_an_account_gives_means_rates_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(training_log, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    account = Account()
    for value in (1.0, 3.0):
        account.add({"loss/kl": torch.tensor(value), "positions": torch.tensor(4.0), "agreement": torch.tensor(value)})
        account.tokens += 50
        account.waited_seconds += 2.0
    clock[0] += 10.0
    # Another rank has seen the same.
    assert account.take(2, 2, lambda values: 2 * values) == pytest.approx(
        {"loss/kl": 4.0, "agreement": 0.5, "tokens_per_second": 20.0, "loader_share": 0.4}
    )
    clock[0] += 1.0
    account.add({"loss/kl": torch.tensor(5.0)})
    shown = account.take(1, 1, lambda values: values)
    assert (shown["loss/kl"], shown["agreement"], shown["tokens_per_second"], shown["loader_share"]) == (5.0, 0, 0, 0)


def test_a_line_is_for_people() -> None:
    logs = {"loss": 1.7, "loss/kl": 1.5, "loss/hidden.6": 0.2, "learning_rate": 1e-4, "grad_norm": 3.0}
    logs |= {"agreement": 0.254, "kept_mass": 0.75, "teacher_tail": 0.25, "student_tail": 0.3}
    logs |= {"tokens_per_second": 12345.6, "loader_share": 0.013}
    assert line(logs) == (
        "kl 1.5000  hidden.6 0.2000  agree 25%  kept 0.750  tail 0.250 (student 0.300)  lr 1.0e-04  "
        "12,346 tokens/s  loader 1%"
    )


# ---------------------------------------------------------------- a run


def test_a_run_tells_its_trackers_what_a_plain_computation_gives(
    dumps: dict[str, Path], tmp_path: Path, tracked: Callable[[Recipe], list[dict[str, float]]]
) -> None:
    """All 60 rows in every batch, with a learning rate so small that nothing changes."""
    made = recipe(tmp_path / "a", dumps[TASK], KL, {"kind": "gold", "weight": 0.5}, batch_size=60, learning_rate=1e-12)
    seen = tracked(made)
    assert [values["step"] for values in seen] == [2, 4]
    student = getattr(transformers, TASKS[TASK].auto_class).from_pretrained(made.output).eval()
    found = agreement_of(student, DumpSource(dumps[TASK]))
    for values in seen:
        assert values["agreement"] == pytest.approx(found.share)
        assert values["loss/kl"] == pytest.approx(found.divergence, rel=1e-4)
        assert values["loss"] == pytest.approx(values["loss/kl"] + 0.5 * values["loss/gold"], rel=1e-4)
        assert values["tokens_per_second"] > 0
        assert 0 <= values["loader_share"] <= 1
        assert 0 < values["learning_rate"] <= 1e-12
        assert "kept_mass" not in values


def test_the_masses_are_the_dumps_own_and_the_last_step_is_logged(
    dumps: dict[str, Path],
    tmp_path: Path,
    tracked: Callable[[Recipe], list[dict[str, float]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All rows in every batch, and all positions compared; polars reads the dump by itself."""
    monkeypatch.setattr(training_log, "COMPARED_POSITIONS", 10_000)
    tail = Dump(dumps["causal-lm"]).positions().select(pl.col("tail").exp().mean()).collect().item()
    seen = tracked(recipe(tmp_path / "a", dumps["causal-lm"], KL, max_steps=5, batch_size=60))
    assert [values["step"] for values in seen] == [2, 4, 5]
    for values in seen:
        assert values["kept_mass"] + values["teacher_tail"] == pytest.approx(1.0, abs=1e-3)
        assert values["teacher_tail"] == pytest.approx(tail, rel=1e-3)
        assert values["student_tail"] > values["teacher_tail"], "it has learnt nothing yet"


def test_waiting_for_batches_is_the_loaders_share(
    dumps: dict[str, Path],
    tmp_path: Path,
    tracked: Callable[[Recipe], list[dict[str, float]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a clock that advances only while batches are made, three seconds for each, and one second in the model."""
    clock = [0.0]
    for module in ("trainer", "log"):
        monkeypatch.setattr(f"student_train.training.{module}.time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    batches, losses = TrainingBatches.__iter__, stage_run.DistillationTrainer.compute_loss

    def slow_batches(self: TrainingBatches) -> Iterator[Any]:
        for batch in batches(self):
            clock[0] += 3.0
            yield batch

    def slow_loss(*arguments: Any, **options: Any) -> torch.Tensor:
        clock[0] += 1.0
        return losses(*arguments, **options)

    monkeypatch.setattr(TrainingBatches, "__iter__", slow_batches)
    monkeypatch.setattr(stage_run.DistillationTrainer, "compute_loss", slow_loss)
    made = recipe(tmp_path / "a", dumps[TASK], KL, gradient_accumulation=2, batch_size=60)
    source = DumpSource(dumps[TASK])
    tokens = sum(len(source.load(group, []).input_ids) for group in range(len(source.group_rows)))
    for values in tracked(made):
        assert values["loader_share"] == pytest.approx(0.75)
        assert values["tokens_per_second"] == pytest.approx(tokens / 4)


def test_the_terminal_gets_one_line_a_log(
    dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, text: printed.append(text))
    distill.run(recipe(tmp_path / "student", dumps["causal-lm"], KL), resume=False)
    assert len(printed) == 2
    for text, step in zip(printed, (2, 4), strict=True):
        assert text.startswith(f"student  step {step}/4  kl ")
        for shown in ("agree ", "kept ", "tail ", "(student ", "lr ", " tokens/s", "loader ", " left"):
            assert shown in text


# ---------------------------------------------------------------- trackers


def test_a_tracker_that_is_not_installed_is_refused(dumps: dict[str, Path], tmp_path: Path) -> None:
    made = recipe(tmp_path / "a", dumps[TASK], KL, report_to=["tensorbored"])
    with pytest.raises(RecipeError, match=r"training\.report_to = 'tensorbored': no such tracker is installed here"):
        distill.run(made, resume=False)
    assert not made.output.exists()


def test_tensorboard_gets_every_value_in_a_folder_beside_the_student(
    dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' own callback, with a writer that keeps what it gets."""
    scalars: list[tuple[str, int]] = []
    folders: list[str] = []

    class SummaryWriter:
        def __init__(self, log_dir: str) -> None:
            folders.append(log_dir)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            scalars.append((name, step))

        def add_text(self, *_: Any) -> None: ...

        def flush(self) -> None: ...

        def close(self) -> None: ...

    for name in ("torch.utils.tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(SummaryWriter=SummaryWriter))
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    made = recipe(tmp_path / "a", dumps["causal-lm"], KL, report_to=["tensorboard"])
    distill.run(made, resume=False)
    assert folders == [str(made.output / "runs")]
    for name in ("loss", "loss/kl", "agreement", "kept_mass", "teacher_tail", "student_tail", "learning_rate"):
        assert [step for logged, step in scalars if logged == f"train/{name}"] == [2, 4]
    for name in ("tokens_per_second", "loader_share"):
        assert [step for logged, step in scalars if logged == f"train/{name}"] == [2, 4]


def test_a_step_of_many_batches_is_shown_while_it_is_at_work(
    dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    made = recipe(tmp_path / "student", dumps[TASK], KL, max_steps=1, gradient_accumulation=3, log_steps=1)
    distill.run(made, resume=False)
    # At the beginning, and after each batch but the last.
    assert capsys.readouterr().err.count("student: 0 of 1 steps\n") == 3
