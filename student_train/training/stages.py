"""The stages of a recipe in order, each completed with what [training] and [validation] say for all stages."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from shared.errors import RecipeError
from shared.numbers import MOST_SEED
from student_train.data.order import Order
from student_train.data.sources import Source
from student_train.data.subsets import Kind
from student_train.losses.base import Loss, columns_of
from student_train.recipe.recipe import Recipe
from student_train.recipe.sections import StageSection, TrainingSection
from student_train.students.unfreezing import Trainable, gradual

# The name of the only stage of a recipe that has no [[stage]].
ONLY_STAGE = "training"


@dataclass(frozen=True)
class Stage:
    """One phase of the training.

    Attributes:
        where: the prefix of its keys in the recipe ("stage.1."), for messages.
        training: the values of [training], replaced by the stage's own where it has some, with a seed of its own.
        rows: which rows the student learns from.
        metric, patience: how the student is scored, if the recipe has a section [validation].
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
    """Return the recipe's stages in order; a stage that unfreezes gradually becomes one stage for each step.

    Raises:
        RecipeError: if two stages get the same name.
    """
    metric = recipe.validation.metric if recipe.validation else "loss"
    patience = recipe.validation.patience if recipe.validation else None
    if not recipe.stage:
        return [
            Stage(
                ONLY_STAGE, "", recipe.loss, recipe.training, metric=_metric_for(recipe.loss, metric), patience=patience
            )
        ]
    found: list[Stage] = []
    for index, section in enumerate(recipe.stage):
        training = section.of(recipe.training)
        for name, trainable in _unfrozen(section, student, training.freeze_embeddings):
            # A seed of its own, so that no stage repeats the dropout masks and the row order of the one before it.
            seeded = training.model_copy(update={"seed": (training.seed + len(found)) % (MOST_SEED + 1)})
            stage = Stage(
                name,
                f"stage.{index}.",
                section.loss,
                seeded,
                section.rows,
                trainable,
                section.metric or _metric_for(section.loss, metric),
                section.patience or patience,
            )
            if any(other.name.lower() == name.lower() for other in found):
                raise RecipeError(f"stage.{index}.name: two stages would have the name {name!r}; choose another name.")
            found.append(stage)
    return found


def _unfrozen(section: StageSection, student: PreTrainedModel, freeze_embeddings: bool) -> list[tuple[str, Trainable]]:
    if section.unfreeze is None:
        return [(section.name, section.trainable)]
    steps = gradual(student, freeze_embeddings)
    return [(f"{section.name}.{number}", trainable) for number, trainable in enumerate(steps, 1)]


def order_of(stage: Stage, source: Source) -> tuple[Order, list[str]]:
    """Return (the order of a stage's batches, the codec columns that its losses read)."""
    training, columns = stage.training, columns_of(stage.loss, source)
    return Order(source.sizes(columns), training.seed, training.batch_size, training.batch_tokens), columns


def _metric_for(loss: tuple[Loss, ...], metric: str) -> str:
    """Return `metric`, or "loss" for a stage whose losses do not train the head: its predictions mean nothing."""
    return metric if any(spec.by_position or spec.trains_head for spec in loss) else "loss"
