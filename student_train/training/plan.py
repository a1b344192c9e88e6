"""The training plan: each stage with its training rows and its validation, checked before the training starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

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
from student_train.recipe.sections import ValidationSection
from student_train.students.unfreezing import unfrozen
from student_train.training.pair_validation import PairValidation
from student_train.training.stages import Stage, stages_of
from student_train.training.validation import FEW_ROWS, Validation


@dataclass(frozen=True)
class StageRun:
    """A stage, the rows that it trains on, and how it is scored (None without a section [validation])."""

    stage: Stage
    rows: Source
    validation: Validation | None


def training_plan(recipe: Recipe, source: Source, student: PreTrainedModel) -> list[StageRun]:
    """Return the stage runs of a recipe, after checking that each can work. The student stays unchanged.

    Raises:
        RecipeError: if rows, signals or parts of the student that a stage needs are missing; the message names the
            stage.
    """
    section = recipe.validation
    split = Split(source, section.held_out if section else 0.0, recipe.training.seed)
    runs, was_training = [], student.training
    for stage in stages_of(recipe, student):
        rows = split.to_train(stage.rows)
        # Random numbers that the checks use must not change those of the training.
        with torch.random.fork_rng(devices=[]):
            stage = _checked(stage, rows, student)
            validation = _validation(section, stage, split) if section else None
            if validation:
                with _errors_start_with(f"{stage.where}metric" if stage.where else "validation.metric"):
                    validation.check(student)
        runs.append(StageRun(stage, rows, validation))
    student.train(was_training)
    return runs


def _validation(section: ValidationSection, stage: Stage, split: Split) -> Validation:
    if section.pairs is not None:
        return PairValidation.on_pairs(section, stage, split.source)
    return Validation.of(section, stage, split)


def _checked(stage: Stage, rows: Source, student: PreTrainedModel) -> Stage:
    """Return the stage with its losses as they are for this student, after checking that it can work."""
    if not rows.group_rows:
        raise RecipeError(
            f"{stage.where}rows = {stage.rows!r}: no such row is left to train on beside the held-out ones; change "
            "rows."
        )
    losses = []
    for index, spec in enumerate(stage.loss):
        with _errors_start_with(f"{stage.where}loss.{index}" if stage.where else ""):
            spec.check(rows)
            losses.append(spec.for_student(rows, student))
            losses[-1].check_student(rows, student)
    stage = replace(stage, loss=tuple(losses))
    with _errors_start_with(stage.where.removesuffix(".")):
        projections = make_projections(stage.loss, rows, student)
        with unfrozen(student, stage.trainable, stage.training.freeze_embeddings):
            if stage.trainable != "all" and not _trains_anything(stage, rows, student, projections):
                raise RecipeError(
                    f"trainable = {stage.trainable!r}: none of the stage's losses depends on a trainable parameter; "
                    "unfreeze more, or choose other losses."
                )
    return stage


def _trains_anything(stage: Stage, rows: Source, student: PreTrainedModel, projections: nn.ModuleDict) -> bool:
    """Whether the losses have a gradient for any trainable parameter of the student, computed on a few rows."""
    few = first_rows(rows, FEW_ROWS)
    batch = next(in_order(few, columns_of(stage.loss, few), FEW_ROWS))
    outputs = outputs_for(stage.loss, student.eval(), batch, few)
    total, _ = total_loss(stage.loss, outputs, targets_of(batch, few), projections.eval())
    trainable = [value for value in student.parameters() if value.requires_grad]
    gradients = torch.autograd.grad(total, trainable, allow_unused=True) if total.requires_grad else ()
    return any(gradient is not None for gradient in gradients)


@contextmanager
def _errors_start_with(where: str) -> Iterator[None]:
    """Prefix the messages of recipe errors with the key that they are about."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}" if where else str(error)) from None
