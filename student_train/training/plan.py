"""The training plan: what each stage learns from and is scored on, and whether it can work at all, before it starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from shared.errors import RecipeError
from student_train.data.batches import in_order
from student_train.data.sources import Source
from student_train.data.subsets import Split, first_rows
from student_train.forward.observe import targets_of
from student_train.losses.base import columns_of, outputs_for
from student_train.losses.projections import make_projections
from student_train.losses.total import total_loss
from student_train.recipe.recipe import Recipe
from student_train.students.unfreezing import unfrozen
from student_train.training.stages import Stage, stages_of
from student_train.training.validation import FEW_ROWS, Validation


@dataclass(frozen=True)
class StageRun:
    """A stage, the rows that it learns from, and how it is scored (None without a section [validation])."""

    stage: Stage
    rows: Source
    validation: Validation | None


def training_plan(recipe: Recipe, source: Source, student: PreTrainedModel) -> list[StageRun]:
    """The recipe's stages with all that they need, checked; the student is as it was before.

    Raises:
        RecipeError: when rows, signals or parts of the student that a stage needs are not there, naming the stage.
    """
    section = recipe.validation
    split = Split(source, section.share if section else 0.0, recipe.training.seed)
    runs, was_training = [], student.training
    for stage in stages_of(recipe, student):
        rows = split.to_train(stage.rows)
        # What the checks draw must not change what the student's training draws later.
        with torch.random.fork_rng(devices=[]):
            _check(stage, rows, student)
            validation = Validation.of(section, stage, split) if section else None
            if validation:
                with _named(f"{stage.where}metric" if stage.where else "validation.metric"):
                    validation.check(student)
        runs.append(StageRun(stage, rows, validation))
    student.train(was_training)
    return runs


def _check(stage: Stage, rows: Source, student: PreTrainedModel) -> None:
    if not rows.group_rows:
        raise RecipeError(f"{stage.where}rows = {stage.rows!r}: there is none that is not held out; change rows.")
    for index, spec in enumerate(stage.loss):
        with _named(f"{stage.where}loss.{index}" if stage.where else ""):
            spec.check(rows)
            spec.check_student(rows, student)
    with _named(stage.where.removesuffix(".")):
        projections = make_projections(stage.loss, rows, student)
        with unfrozen(student, stage.trainable, stage.training.freeze_embeddings):
            if stage.trainable != "all" and not _reaches(stage, rows, student, projections):
                raise RecipeError(
                    f"trainable = {stage.trainable!r}: none of the stage's losses depends on what is trainable; "
                    "unfreeze more, or choose other losses."
                )


def _reaches(stage: Stage, rows: Source, student: PreTrainedModel, projections: nn.ModuleDict) -> bool:
    """Whether the losses depend on anything that is trainable in the student, as some rows tell."""
    few = first_rows(rows, FEW_ROWS)
    batch = next(in_order(few, columns_of(stage.loss, few), FEW_ROWS))
    outputs = outputs_for(stage.loss, student.eval(), batch, few)
    total, _ = total_loss(stage.loss, outputs, targets_of(batch, few), projections)
    trainable = [value for value in student.parameters() if value.requires_grad]
    gradients = torch.autograd.grad(total, trainable, allow_unused=True) if total.requires_grad else ()
    return any(gradient is not None for gradient in gradients)


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Errors begin with the key that they are about."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}" if where else str(error)) from None
