"""The stages of a recipe in their order, with everything that [training] and [validation] leave to them."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from shared.errors import RecipeError
from student_train.data.order import Order
from student_train.data.sources import Source
from student_train.data.subsets import Kind
from student_train.losses.base import Loss, columns_of
from student_train.recipe.recipe import Recipe
from student_train.recipe.sections import StageSection, TrainingSection
from student_train.students.unfreezing import Trainable, gradual

# The one stage of a recipe that has no [[stage]].
ONLY_STAGE = "training"


@dataclass(frozen=True)
class Stage:
    """One phase of the training.

    Attributes:
        where: what its keys begin with in the recipe ("stage.1."), for messages.
        training: [training], with the stage's own values in it and a seed of its own.
        rows: which rows it learns from.
        metric, patience: how it is scored, where the recipe has a section [validation].
    """

    name: str
    where: str
    loss: tuple[Loss, ...]
    training: TrainingSection
    rows: Kind = "all"
    trainable: Trainable = "all"
    metric: str = "loss"
    patience: int | None = None


def stages_of(recipe: Recipe, student: PreTrainedModel) -> list[Stage]:
    """The stages, those that unfreeze the student gradually one by one.

    Raises:
        RecipeError: when two of them end up with the same name.
    """
    metric = recipe.validation.metric if recipe.validation else "loss"
    patience = recipe.validation.patience if recipe.validation else None
    if not recipe.stage:
        return [
            Stage(ONLY_STAGE, "", recipe.loss, recipe.training, metric=_fitting(metric, recipe.loss), patience=patience)
        ]
    found: list[Stage] = []
    for index, section in enumerate(recipe.stage):
        training = section.of(recipe.training)
        for name, trainable in _unfrozen(section, student, training.freeze_embeddings):
            # No stage repeats what was drawn in the one before: dropout, the order of rows.
            seeded = training.model_copy(update={"seed": training.seed + len(found)})
            stage = Stage(
                name,
                f"stage.{index}.",
                section.loss,
                seeded,
                section.rows,
                trainable,
                section.metric or _fitting(metric, section.loss),
                section.patience or patience,
            )
            if any(other.name == name for other in found):
                raise RecipeError(f"stage.{index}.name: there would be two stages {name!r}; choose another name.")
            found.append(stage)
    return found


def _unfrozen(section: StageSection, student: PreTrainedModel, freeze_embeddings: bool) -> list[tuple[str, Trainable]]:
    if section.unfreeze is None:
        return [(section.name, section.trainable)]
    steps = gradual(student, freeze_embeddings)
    return [(f"{section.name}.{number}", trainable) for number, trainable in enumerate(steps, 1)]


def order_of(stage: Stage, source: Source) -> tuple[Order, list[str]]:
    """(the order of a stage's batches, the codecs' columns that its losses read)."""
    training, columns = stage.training, columns_of(stage.loss, source)
    return Order(source.sizes(columns), training.seed, training.batch_size, training.batch_tokens), columns


def _fitting(metric: str, loss: tuple[Loss, ...]) -> str:
    """Predictions say nothing about a stage that does not train the head: it is scored by its loss."""
    return metric if any(spec.by_position for spec in loss) else "loss"
