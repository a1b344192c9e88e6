"""What tests of whole runs have in common."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
import transformers

from shared.text.tasks import TASKS
from student_train import distill
from student_train.recipe.recipe import Recipe

TRANSFORMER = {"kind": "transformer", "layers": 1, "hidden_size": 16, "heads": 2}
BILSTM = {"kind": "bilstm", "embedding_size": 8, "hidden_size": 8}
KL, GOLD = {"kind": "kl"}, {"kind": "gold"}
HIDDEN = {"kind": "hidden", "teacher_layer": 2, "student_layer": -1}


def recipe(output: Path, student: dict[str, Any], *losses: dict[str, Any], **sections: Any) -> Recipe:
    training = {"max_steps": 3, "batch_size": 8, "learning_rate": 1e-3, "device": "cpu"} | sections.pop("training", {})
    return Recipe.model_validate(
        {"output": output, "student": student, "loss": losses, "training": training, **sections}
    )


def weights(folder: Path, task: str = "sequence-classification") -> dict[str, torch.Tensor]:
    model = getattr(transformers, TASKS[task].auto_class).from_pretrained(folder)
    return {name: value.clone() for name, value in model.state_dict().items()}


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def run_until_killed(killed: Recipe, owner: Any, call: str, at: int) -> None:
    """Run a recipe in a forked process that dies at the `at`-th call of a function of `owner`."""
    child = os.fork()
    if child == 0:
        original, calls = getattr(owner, call), [0]

        def deadly(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(owner, call, deadly)
        try:
            distill.run(killed, resume=False)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
