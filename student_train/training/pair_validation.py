"""Scores of a student's embeddings on pairs of texts while it trains, in place of scores on held-out rows."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from shared.errors import RecipeError
from shared.text.metrics import CORRELATIONS
from student_train.data.pairs import ScoredPairs
from student_train.data.sources import Source
from student_train.forward.evaluating import evaluating
from student_train.recipe.sections import EPOCHS_BETWEEN_SCORES, ValidationSection
from student_train.scoring.pairs import scores_of
from student_train.training import ranks
from student_train.training.stages import Stage
from student_train.training.validation import Validation


@dataclass(frozen=True)
class PairValidation(Validation):
    """How one stage is scored on pairs; no rows are held out, and rank 0 scores for all."""

    pairs: ScoredPairs

    @classmethod
    def on_pairs(cls, section: ValidationSection, stage: Stage, source: Source) -> "PairValidation":
        """Return the validation of a stage, as the section [validation] with its `pairs` describes it.

        Raises:
            RecipeError, UsageError, CorpusError: if the task has no embeddings, or the pairs cannot be read.
        """
        assert section.pairs is not None
        if not source.task.has_embeddings:
            raise RecipeError(
                f"validation.pairs: the task {source.task.name} has no embeddings to score on pairs; leave it out."
            )
        pairs = ScoredPairs.of(source.task, section.pairs.data, section.pairs, source.tokenizer, source.max_length)
        every = section.every or EPOCHS_BETWEEN_SCORES
        return cls(stage.metric, stage.loss, source, every, section.every_steps, stage.patience, pairs)

    def score(self, student: PreTrainedModel) -> float:
        with evaluating(student):
            return ranks.first_does(lambda: scores_of(student, self.pairs)[self.metric])

    def check(self, student: PreTrainedModel) -> None:
        if self.metric not in CORRELATIONS:
            raise RecipeError(
                f"the metric {self.metric!r} is not one of embeddings of pairs; the valid ones are "
                f"{', '.join(CORRELATIONS)}."
            )
