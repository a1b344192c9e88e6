"""The score of a candidate: how near a student is to the teacher on rows that were held out, after a few steps.

It must not depend on what distinguishes the candidates. A student's own loss does (each layer map has another one), so
one of these is measured instead, the first that is possible:

1. the recipe's `validation.metric`, if that is not "loss": the agreement with the teacher, or a metric of the task;
2. KL: the loss against the teacher's stored distributions, if the recipe trains the student's head;
3. the unexplained share: how much of the teacher's topmost stored hidden states no linear map of the student's topmost
   ones explains, mean over the teacher's channels (0: everything is explained, 1: nothing). The map is fitted to one
   half of the held-out rows and measured on the other half, and vice versa, so every student gets the map that suits it
   best, whatever losses and projections it was trained with.

Shapes: T tokens, D width of the student and a constant, E width of the teacher.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shared.dump.signals import DISTRIBUTION, HIDDEN, SignalKey
from shared.errors import RecipeError
from shared.models import loading
from shared.models.devices import usable_device
from student_train.data.batches import in_order
from student_train.data.sources import Source
from student_train.data.subsets import Split
from student_train.forward.evaluating import evaluating
from student_train.forward.observe import outputs_of, targets_of
from student_train.losses.base import stored_layers
from student_train.recipe.recipe import Recipe
from student_train.recipe.sections import EPOCHS_BETWEEN_SCORES
from student_train.scoring.agreement import agreement_of
from student_train.scoring.predictions import EVAL_ROWS
from student_train.training.validation import AGREEMENT, LOSS, Validation

# Beside the mean square of a channel: enough to solve for channels that are copies of each other.
RIDGE = 1e-4


@dataclass(frozen=True)
class Fitness:
    """What candidates are compared by.

    Attributes:
        name: its name in tables, and `words` in a sentence.
        measure: the value for a student in evaluation mode, on the held-out rows of a split.
    """

    name: str
    words: str
    less_is_better: bool
    measure: Callable[[PreTrainedModel, Split], float]

    def merit(self, score: float) -> float:
        """Return the score, or its negative if lower scores are better."""
        return -score if self.less_is_better else score


def fitness_for(recipe: Recipe, source: Source) -> Fitness:
    """Return what the candidates of a recipe are compared by.

    Raises:
        RecipeError: if there is nothing to compare them by.
    """
    metric = recipe.validation.metric if recipe.validation is not None else LOSS
    losses = (*recipe.loss, *(spec for stage in recipe.stage for spec in stage.loss))
    if metric != LOSS:
        return _by_metric(metric, source)
    if source.distribution is not None and any(
        not spec.has_teacher or SignalKey(DISTRIBUTION) in spec.signals(source.signals) for spec in losses
    ):
        return Fitness("kl", "the loss against the teacher's distributions", True, _divergence)
    layers = stored_layers(source.signals, (HIDDEN,))
    if not layers:
        raise RecipeError(
            f"{source.name}: there is nothing to compare candidates by, neither distributions (which a loss of the "
            "recipe trains the head for) nor hidden states; dump again with --hidden, or add a loss on distributions."
        )
    words = f"the unexplained share of the teacher's hidden states {layers[-1]}"
    return Fitness("unexplained", words, True, lambda student, split: unexplained(student, split, layers[-1]))


def check_fitness(fitness: Fitness, student: PreTrainedModel, split: Split) -> None:
    """Check, by scoring an untrained student, that a fitness can be measured. Raises RecipeError if it cannot."""
    fitness.measure(student.eval(), split)


def load_student(folder: Path, source: Source, device: str) -> PreTrainedModel:
    """Load a finished student in evaluation mode."""
    path = str(folder)
    config = loading.load_config(path, RecipeError)
    model, _ = loading.load_model(source.task.auto_class, path, config, RecipeError, dtype=torch.float32)
    model.config.use_cache = False
    where = usable_device("cuda" if device == "auto" and torch.cuda.is_available() else "cpu")
    return model.eval().to(where)


def _by_metric(metric: str, source: Source) -> Fitness:
    def of(split: Split) -> Validation:
        rows = split.held_out("all" if metric == AGREEMENT else "labelled")
        if not rows.group_rows:
            raise RecipeError(
                f"validation.metric = {metric!r}: none of the held-out rows of {source.name} has a gold label; choose "
                '"agreement", or leave the key out.'
            )
        return Validation(metric, (), rows, EPOCHS_BETWEEN_SCORES, None, None)

    def measure(student: PreTrainedModel, split: Split) -> float:
        validation = of(split)
        validation.check(student)
        return validation.score(student)

    less_is_better = Validation(metric, (), source, EPOCHS_BETWEEN_SCORES, None, None).less_is_better
    return Fitness(metric, f"the {metric}", less_is_better, measure)


def _divergence(student: PreTrainedModel, split: Split) -> float:
    return agreement_of(student, split.held_out("all")).divergence


def unexplained(student: PreTrainedModel, split: Split, layer: int) -> float:
    """Return the share of the variance of the teacher's hidden states of a layer that no linear map of the student's
    topmost hidden states explains, mean over the teacher's channels that vary."""
    rows, key = split.held_out("all"), SignalKey(HIDDEN, layer)
    halves: list[_Moments | None] = [None, None]
    seen = 0
    with evaluating(student):
        for host_batch in in_order(rows, rows.columns_of({key}), EVAL_ROWS, by_length=True):
            batch = host_batch.to(student.device)
            outputs = outputs_of(student, batch, rows, wants_hidden=True)
            own_TD = outputs.hidden_TD[-1].double()
            teacher_TE = targets_of(batch, rows).vectors[key].decode(slice(0, len(own_TD))).double()
            lengths_R = torch.tensor(outputs.lengths, device=own_TD.device)
            half_T = ((torch.arange(len(lengths_R), device=own_TD.device) + seen) % 2).repeat_interleave(lengths_R)
            seen += len(lengths_R)
            for half in (0, 1):
                found, before = _Moments.of(own_TD[half_T == half], teacher_TE[half_T == half]), halves[half]
                halves[half] = found if before is None else before.plus(found)
    first, second = halves
    if first is None or second is None or min(first.count, second.count) < 2:
        raise RecipeError(
            f"{rows.name}: {seen} held-out rows are too few to compare candidates on; give more (--held-out)."
        )
    return float((second.unexplained_by(first.fitted()) + first.unexplained_by(second.fitted())) / 2)


@dataclass(frozen=True)
class _Moments:
    """Sums of products over tokens, from which linear maps are fitted and measured: the student's states and a
    constant with themselves [D, D] and with the teacher's states [D, E]; the teacher's squares and sums [E]."""

    own_DD: Tensor
    cross_DE: Tensor
    squares_E: Tensor
    sums_E: Tensor
    count: int

    @classmethod
    def of(cls, own_TD: Tensor, teacher_TE: Tensor) -> "_Moments":
        own_TD = torch.cat([own_TD, own_TD.new_ones(len(own_TD), 1)], dim=1)
        return cls(own_TD.T @ own_TD, own_TD.T @ teacher_TE, teacher_TE.square().sum(0), teacher_TE.sum(0), len(own_TD))

    def plus(self, other: "_Moments") -> "_Moments":
        return _Moments(
            self.own_DD + other.own_DD,
            self.cross_DE + other.cross_DE,
            self.squares_E + other.squares_E,
            self.sums_E + other.sums_E,
            self.count + other.count,
        )

    def fitted(self) -> Tensor:
        """Return the linear map [D, E] of least squares, with a little ridge."""
        ridge = RIDGE * self.own_DD.diagonal().mean().clamp(min=1e-12)
        return torch.linalg.solve(self.own_DD + ridge * torch.eye(len(self.own_DD)).to(self.own_DD), self.cross_DE)

    def unexplained_by(self, map_DE: Tensor) -> Tensor:
        """Return the mean over channels of (squared error of a linear map) / (variance)."""
        errors_E = self.squares_E - 2 * (map_DE * self.cross_DE).sum(0) + (map_DE * (self.own_DD @ map_DE)).sum(0)
        spread_E = self.squares_E - self.sums_E.square() / self.count
        varies_E = spread_E > 1e-9 * self.squares_E.clamp(min=1e-12)
        return (errors_E[varies_E] / spread_E[varies_E]).mean()
