"""A student's learnt transitions: a part of it while it trains, and a JSON file in its folder afterwards.

The folder's weights are those of a plain model of transformers, which AutoModelForTokenClassification loads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ValidationError, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.errors import RecipeError
from shared.numbers import STRICT
from shared.storage.files import write_text_atomically
from shared.validation import in_words
from student_train.chains.crf import Transitions

FILE_NAME = "transitions.json"
# The name of the submodule.
SUBMODULE = "tag_transitions"


class TagTransitions(nn.Module):
    """Scores of transitions between C tags as parameters, at first 0."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.between_CC = nn.Parameter(torch.zeros(classes, classes))
        self.first_C = nn.Parameter(torch.zeros(classes))
        self.last_C = nn.Parameter(torch.zeros(classes))


class TransitionsFile(BaseModel):
    """The content of the file: names of the labels, and scores by their order; `between[i][j]` is that of j after i."""

    model_config = STRICT

    labels: tuple[str, ...]
    between: tuple[tuple[float, ...], ...]
    first: tuple[float, ...]
    last: tuple[float, ...]

    @model_validator(mode="after")
    def _one_score_each(self) -> Self:
        classes = len(self.labels)
        if not all(len(scores) == classes for scores in (self.between, self.first, self.last, *self.between)):
            raise ValueError(f"there are {classes} labels, and not as many scores of each kind")
        return self


def add_transitions(model: PreTrainedModel, classes: int) -> TagTransitions:
    """Give a model transitions of its own, all 0; they are part of it like its other weights."""
    made = TagTransitions(classes)
    model.add_module(SUBMODULE, made)
    return made


def transitions_of(model: nn.Module) -> Transitions | None:
    """Return a model's transitions, with gradients; None if it has none."""
    found = getattr(model, SUBMODULE, None)
    return None if found is None else Transitions(found.between_CC, found.first_C, found.last_C)


@contextmanager
def without_transitions(model: PreTrainedModel) -> Iterator[None]:
    """While open, a model has no transitions, so that it is saved as a plain model."""
    found = getattr(model, SUBMODULE, None)
    if found is None:
        yield
        return
    delattr(model, SUBMODULE)
    try:
        yield
    finally:
        model.add_module(SUBMODULE, found)


def save_transitions(model: PreTrainedModel, label_names: tuple[str, ...] | None, folder: Path) -> None:
    """Write a model's transitions into its folder; nothing if it has none."""
    found = transitions_of(model)
    if found is None:
        return
    between, first, last = (scores.detach().cpu().tolist() for scores in found)
    content = TransitionsFile(labels=label_names or (), between=between, first=first, last=last)
    write_text_atomically(folder / FILE_NAME, content.model_dump_json() + "\n")


def load_transitions(model: PreTrainedModel, label_names: tuple[str, ...] | None, folder: Path | str) -> None:
    """Give a model the transitions in its folder, if there are any.

    Raises:
        RecipeError: if the file cannot be read, or has other labels than the model.
    """
    path = Path(folder) / FILE_NAME
    if not path.exists():
        return
    try:
        content = TransitionsFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        reason = in_words(error, TransitionsFile)
        raise RecipeError(f"{path}: not the transitions of a model ({reason}); restore the file.") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); restore the file.") from None
    if content.labels != label_names:
        raise RecipeError(
            f"{path}: its labels are {', '.join(content.labels)}, and not the model's; it belongs to another model."
        )
    made = add_transitions(model, len(content.labels))
    with torch.no_grad():
        for parameter, values in (
            (made.between_CC, content.between),
            (made.first_C, content.first),
            (made.last_C, content.last),
        ):
            parameter.copy_(_tensor(values))


def _tensor(values: tuple[float, ...] | tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)
