"""Projections: modules that are trained with a student for its losses alone, and dropped afterwards."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from student_train.data.sources import Source
from student_train.losses.base import Loss

# The name of the submodule that holds them while a student trains.
PROJECTIONS = "distillation_projections"


def make_projections(losses: Sequence[Loss], source: Source, student: PreTrainedModel) -> nn.ModuleDict:
    """Return the projections of all losses that have some, by the loss's number.

    Raises:
        RecipeError: for a layer that the student does not have.
    """
    projections = nn.ModuleDict()
    for index, spec in enumerate(losses):
        made = spec.make_projection(source, student, f"loss.{index}")
        if made is not None:
            projections[str(index)] = made
    return projections
