"""BERT-EMD from end to end: its masses are in checkpoints, equal on all ranks, and gone when the student is saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from student_train import distill
from student_train.losses.emd import loss as emd
from student_train.recipe.recipe import Recipe
from student_train.training.trainer import DistillationTrainer
from tests.student_train.training.test_ranks import on_ranks

# What is added in another order differs by float noise, which Adam may make larger.
NOISE = 2e-5
EMD = {"kind": "emd", "cost_tokens": 40}
EMBEDDINGS = {"kind": "hidden", "teacher_layer": 0, "student_layer": 0}


@pytest.fixture(scope="module")
def dump(make_dump: Callable[..., Path], make_teacher: Callable[..., Path]) -> Path:
    teacher = make_teacher("encoder", num_hidden_layers=3)
    return make_dump("encoder", teacher=teacher, hidden="all", relations="all")


@pytest.fixture
def made(tmp_path: Path, dump: Path) -> Callable[..., Recipe]:
    def make(name: str, *losses: dict[str, Any], **sections: Any) -> Recipe:
        training = {"max_steps": 9, "save_steps": 3, "batch_size": 8, "learning_rate": 5e-3, "device": "cpu"}
        return Recipe.model_validate(
            {
                "output": tmp_path / name,
                "dump": dump,
                "student": {"kind": "transformer", "layers": 2, "hidden_size": 24, "heads": 4}
                | sections.pop("student", {}),
                "loss": losses or (EMD, EMBEDDINGS),
                "training": training | sections.pop("training", {}),
                **sections,
            }
        )

    return make


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(AutoModel.from_pretrained(folder).state_dict())


def distance(one: Path, other: Path) -> float:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.fixture
def masses(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The student's masses after each batch."""
    seen: list[Tensor] = []
    original = emd.EMDLoss.value

    def watching(self: Any, outputs: Any, targets: Any, projection: Any) -> Tensor:
        value = original(self, outputs, targets, projection)
        seen.append(projection.of("hidden").student_M.clone())
        return value

    monkeypatch.setattr(emd.EMDLoss, "value", watching)
    return seen


def test_a_killed_run_goes_on_with_its_masses(
    made: Callable[..., Recipe], masses: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout and accumulation, bit by bit; the student that is saved has neither masses nor linear maps."""
    changes = {"student": {"dropout": 0.2}, "training": {"gradient_accumulation": 2, "max_steps": 7}}
    undisturbed = distill.run(made("undisturbed", **changes), resume=False).output
    expected = [each.tolist() for each in masses]
    assert len(expected) == 14
    assert expected[-1] != expected[0]
    masses.clear()
    original, calls = DistillationTrainer.compute_loss, [0]

    def failing(self: Any, *given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 11:
            raise KeyboardInterrupt
        return original(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "compute_loss", failing)
        with pytest.raises(KeyboardInterrupt):
            distill.run(made("killed", **changes), resume=False)
    checkpoint = made("killed").output / "checkpoints" / "training" / "checkpoint-3" / "model.safetensors"
    name = "distillation_projections.0.masses.hidden.student_M"
    assert load_file(checkpoint)[name].tolist() == expected[5]
    masses.clear()
    killed = distill.run(made("killed", **changes), resume=True).output
    assert [each.tolist() for each in masses] == expected[6:]
    first, second = weights(undisturbed), weights(killed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not [name for name in load_file(killed / "model.safetensors") if "masses" in name or "projection" in name]


@pytest.mark.parametrize(("count", "rows"), [(2, 9), (3, 2)])
def test_ranks_share_their_costs_and_train_the_student_of_one(
    count: int, rows: int, made: Callable[..., Recipe]
) -> None:
    """Of batches of two rows the third rank has one again, without weight."""
    both = [{"kind": "emd"}, EMBEDDINGS]
    changes = {"student": {"dropout": 0.0}, "training": {"batch_size": rows, "max_steps": 5}}
    alone, together = made("alone", *both, **changes), made("together", *both, **changes)
    distill.run(alone, resume=False)
    assert on_ranks(count, lambda: distill.run(together, resume=False)) == [0] * count
    assert distance(alone.output, together.output) < NOISE


def test_scores_on_held_out_rows_leave_the_masses(made: Callable[..., Recipe], masses: list[Tensor]) -> None:
    """And stages that train a part of the student begin with equal ones."""
    stages = [
        {"name": "all", "loss": [EMD], "max_steps": 3},
        {"name": "top", "loss": [EMD], "max_steps": 3, "trainable": 1},
    ]
    content = made("student", validation={"share": 0.2, "every_steps": 1}).model_dump(mode="json", exclude_unset=True)
    content.pop("loss")
    result = distill.run(Recipe.model_validate({**content, "stage": stages}), resume=False)
    assert result.steps == 6
    values = [tuple(each.tolist()) for each in masses]
    # The equal masses of the first scores, then those of each of the three steps, twice; the check before has its own.
    changes = [value for number, value in enumerate(values) if number == 0 or value != values[number - 1]]
    assert changes.count((0.5, 0.5)) == 2
    assert len(changes) == 8
