"""What tests of whole runs have in common."""

from pathlib import Path
from typing import Any

import torch
import transformers

from shared.text.tasks import TASKS
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
