"""Scores of a student on held-out rows while it trains; a stage ends with the weights that scored best.

Each rank scores its part of the rows. The results are plain numbers that every rank adds up in the order of the ranks,
so that all ranks get exactly the same score and make the same decisions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from shared.errors import RecipeError
from shared.text.predictions import Predictions
from student_train.data.batches import in_order
from student_train.data.sources import Source
from student_train.data.subsets import Split, first_rows
from student_train.forward.evaluating import evaluating
from student_train.forward.head import plain_head
from student_train.forward.observe import targets_of
from student_train.losses.base import Loss, can_slice, columns_of, outputs_for
from student_train.losses.projections import PROJECTIONS
from student_train.losses.total import total_loss
from student_train.recipe.sections import EPOCHS_BETWEEN_SCORES, ValidationSection
from student_train.scoring.agreement import Agreement, agreement_of
from student_train.scoring.predictions import EVAL_ROWS, predictions_of
from student_train.training import ranks
from student_train.training.stages import Stage

LOSS, AGREEMENT = "loss", "agreement"
_LOWER_IS_BETTER = (LOSS, "perplexity")
FEW_ROWS = 2


@dataclass(frozen=True)
class Validation:
    """How one stage is scored.

    Attributes:
        metric: "loss", "agreement" or one of the task's metrics.
        rows: this rank's part of the held-out rows: for the loss, rows of the kind that the stage trains on; for a
            metric of the task, rows with gold labels; for the agreement, all rows.
        every, every_steps: `every_steps` steps lie between two scores, or `every` epochs where it is None.
        patience: the stage ends after this many scores in a row without a better one; None for never.
    """

    metric: str
    loss: tuple[Loss, ...]
    rows: Source
    every: float
    every_steps: int | None
    patience: int | None

    @classmethod
    def of(cls, section: ValidationSection, stage: Stage, split: Split) -> "Validation":
        """Return the validation of a stage, as the section [validation] describes it.

        Raises:
            RecipeError: if no row is held out that the metric can use; the message names section and key.
        """
        kind = {LOSS: stage.rows, AGREEMENT: "all"}.get(stage.metric, "labelled")
        whole = split.held_out(kind)
        if not whole.group_rows:
            what = "row" if kind == "all" else f"{kind} row"
            raise RecipeError(
                f"validation.share = {section.held_out:g}: it holds out no {what} of {split.source.name}, but the "
                f"metric {stage.metric!r} needs some; give a larger share, or another metric."
            )
        every = section.every or EPOCHS_BETWEEN_SCORES
        rows = split.held_out(kind, ranks.rank(), ranks.count())
        return cls(stage.metric, stage.loss, rows, every, section.every_steps, stage.patience)

    @property
    def less_is_better(self) -> bool:
        """Whether a lower score is better."""
        return self.metric in _LOWER_IS_BETTER

    def is_better(self, score: float, best: float | None) -> bool:
        """Whether a score is better than the best one so far (None: there is none yet)."""
        return best is None or (score < best if self.less_is_better else score > best)

    def score(self, student: PreTrainedModel) -> float:
        """Return the student's score on all held-out rows. Every rank must call this; all get the same number."""
        with evaluating(student):
            part = self._score_part(student, self.rows)
        return self._combine(ranks.gathered(part))

    def check(self, student: PreTrainedModel) -> None:
        """Check the metric by scoring a few rows. Raises RecipeError for a metric that the task does not have."""
        if self.metric == LOSS or not self.rows.group_rows:
            return
        if self.metric == AGREEMENT:
            if self.rows.distribution is None:
                raise RecipeError(
                    f"the metric 'agreement' needs the teacher's distributions, but {self.rows.name} has none; choose "
                    "another metric."
                )
            return
        task = self.rows.task
        if task.needs_examples:
            raise RecipeError(
                f"the metric {self.metric!r} is not available for {task.name} during training, because its metrics "
                f"need the texts of whole examples; the valid ones are {LOSS}, {AGREEMENT}."
            )
        few = predictions_of(student.eval(), first_rows(self.rows, FEW_ROWS))
        known = tuple(task.metrics(few))
        if self.metric not in known:
            valid = ", ".join(dict.fromkeys((LOSS, AGREEMENT, *known)))
            raise RecipeError(f"the metric {self.metric!r} is unknown for {task.name}; the valid ones are {valid}.")

    def _score_part(self, student: PreTrainedModel, rows: Source) -> Any:
        """What this rank contributes to the score, as `_combine` takes it."""
        if self.metric == LOSS:
            return self._losses(student, rows)
        if self.metric == AGREEMENT:
            return agreement_of(student, rows, with_divergence=False)
        return predictions_of(student, rows)

    def _combine(self, parts: Sequence[Any]) -> float:
        if self.metric == LOSS:
            # The mean of each loss over its terms, as in training.
            values, counts = (np.sum([part[index] for part in parts], axis=0) for index in (0, 1))
            weights = np.asarray([spec.weight for spec in self.loss])
            return float((weights * values / np.maximum(counts, 1)).sum())
        if self.metric == AGREEMENT:
            return sum(parts, Agreement()).share
        return self.rows.task.metrics(_concatenated(parts))[self.metric]

    def _losses(self, student: PreTrainedModel, rows: Source) -> tuple[list[float], list[int]]:
        """Return, for each loss, (the sum over its terms, the number of terms)."""
        head = plain_head(student) if can_slice(self.loss, rows) else None
        columns = columns_of(self.loss, rows)
        values, counts = np.zeros(len(self.loss)), np.zeros(len(self.loss), np.int64)
        for batch in in_order(rows, columns, EVAL_ROWS, by_length=True):
            batch = batch.to(student.device)
            outputs = outputs_for(self.loss, student, batch, rows, head)
            _, parts = total_loss(self.loss, outputs, targets_of(batch, rows), getattr(student, PROJECTIONS))
            batch_counts = np.asarray([spec.count(batch) for spec in self.loss])
            values += batch_counts * np.asarray([float(value) for value in parts.values()])
            counts += batch_counts
        return values.tolist(), counts.tolist()


def _concatenated(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions of several ranks as one: lists concatenated, sums added up, names unchanged."""
    values: dict[str, Any] = {}
    for field in fields(Predictions):
        first, *others = (getattr(part, field.name) for part in parts)
        if isinstance(first, dict):
            values[field.name] = {key: value for part in (first, *others) for key, value in part.items()}
        else:
            values[field.name] = first if isinstance(first, tuple) else sum(others, first)
    return Predictions(**values)
