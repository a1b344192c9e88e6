"""Loading model folders for scoring; the task follows from the architecture unless it is given."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shared.errors import RecipeError, UsageError
from shared.models import loading
from shared.text.tasks import TASKS, Task, task_named
from student_train.chains.transitions import load_transitions

DEFAULT_LENGTH = 512


def longest_row(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest number of tokens that a model accepts, but at most 512."""
    # The tokenizer's limit, because some architectures (RoBERTa) take fewer tokens than they have positions.
    reach = getattr(model.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_LENGTH
    return min(reach, tokenizer.model_max_length, DEFAULT_LENGTH)


def load_model(path: Path | str, task_name: str | None) -> tuple[PreTrainedModel, Task]:
    """Load a model folder with the task's class, in evaluation mode. Raises RecipeError if it holds no such model."""
    config = loading.load_config(str(path), RecipeError)
    task = task_named(task_name or _task_of(config, path))
    if not task.is_scored:
        raise UsageError(f"the task {task.name} has nothing to score; choose one with predictions.")
    model, missing = loading.load_model(task.auto_class, str(path), config, RecipeError, dtype=torch.float32)
    missing = [key for key in missing if not any(part in key for part in task.optional_weights)]
    if missing:
        raise RecipeError(
            f"{path}: it has no weights for {', '.join(missing[:3])}, which {task.name} needs; this checkpoint lacks "
            "that head."
        )
    load_transitions(model, task.label_names_of(model.config), path)
    model.config.use_cache = False  # nothing is generated
    return model.eval(), task


def _task_of(config: Any, path: Path | str) -> str:
    architecture = (config.architectures or [""])[0]
    for name, task in TASKS.items():
        if task.is_scored and task.fits([architecture]):
            return name
    raise RecipeError(f"{path}: the task cannot be determined from its architecture {architecture!r}; give --task.")
