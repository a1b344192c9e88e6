"""A loss or a weight that becomes NaN or infinite stops the training, and no student is saved from it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shared.errors import TrainingError
from student_train import distill
from student_train.training.finite import FiniteLosses
from student_train.training.trainer import DistillationTrainer
from tests.student_train.runs import HIDDEN, KL, TRANSFORMER, recipe, weights


def test_the_first_step_and_its_losses_are_named() -> None:
    losses = FiniteLosses("logits")
    losses.note(1, {"kl": torch.tensor(1.0), "hidden.2": torch.tensor(0.5)})
    losses.check(1e-3)
    losses.note(2, {"kl": torch.tensor(float("nan")), "hidden.2": torch.tensor(0.5)})
    losses.note(3, {"kl": torch.tensor(1.0), "hidden.2": torch.tensor(float("inf"))})
    with pytest.raises(TrainingError, match=r"step 2 of stage 'logits': the loss kl is NaN .*learning rate 1.0e-03"):
        losses.check(1e-3)


def test_weights_that_are_not_finite_are_named_and_frozen_ones_do_not_matter() -> None:
    model = torch.nn.Linear(2, 2)
    model.bias.data[0] = float("inf")
    with pytest.raises(TrainingError, match="step 7: the weights bias are NaN or infinite"):
        FiniteLosses("").check_weights(model, 7, 1e-3)
    model.bias.requires_grad_(False)
    FiniteLosses("").check_weights(model, 7, 1e-3)


@pytest.mark.parametrize(
    ("losses", "training"),
    [
        ([KL], {"weight_decay": 1e12}),
        ([{**HIDDEN, "weight": 1e12}, KL], {"weight_decay": 1e12, "learning_rate": 1000}),
    ],
)
def test_training_that_diverges_saves_no_student(
    losses: Any, training: Any, dumps: dict[str, Path], tmp_path: Path
) -> None:
    training = {"max_steps": 10} | training
    made = recipe(tmp_path / "student", TRANSFORMER, *losses, dump=dumps["sequence-classification"], training=training)
    with pytest.raises(TrainingError, match=r"NaN or infinite \(learning rate"):
        distill.run(made, resume=False)
    assert not made.output.exists()


def test_the_last_good_checkpoint_is_kept(
    dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"max_steps": 8, "save_steps": 2}
    made = recipe(tmp_path / "student", TRANSFORMER, KL, dump=dumps["sequence-classification"], training=training)
    original = DistillationTrainer._loss

    def diverging(self: Any, *arguments: Any) -> Any:
        if self.state.global_step == 4:  # step 5
            self.model.classifier.weight.data.fill_(float("nan"))
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "_loss", diverging)
        with pytest.raises(TrainingError, match="step 5: the loss kl is NaN"):
            distill.run(made, resume=False)
    found = {path.name for path in (made.output / "checkpoints" / "training").iterdir()}
    assert found == {"checkpoint-2", "checkpoint-4"}
    assert not distill.is_finished(made.output)
    distill.run(made, resume=True)
    assert distill.is_finished(made.output)


@pytest.mark.parametrize(
    ("losses", "training"),
    [
        ([{**KL, "weight": 1e12}, HIDDEN], {}),
        ([{**KL, "temperature": 1e12}], {}),
        ([{**KL, "temperature": 1e-12}], {}),
        ([KL], {"max_grad_norm": 1e12}),
        ([KL], {"max_grad_norm": 1e-12}),
    ],
)
def test_factors_within_their_bounds_train_finite_weights(
    losses: Any, training: Any, dumps: dict[str, Path], tmp_path: Path
) -> None:
    made = recipe(tmp_path / "student", TRANSFORMER, *losses, dump=dumps["sequence-classification"], training=training)
    trained = weights(distill.run(made, resume=False).output)
    assert all(bool(value.isfinite().all()) for value in trained.values())
