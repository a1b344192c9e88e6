"""The sections of a recipe about files, [data] and [eval]: paths, columns, positions and lengths.

Keys that are also options of `dump` and `distill eval` are declared once, in `shared.text`.
"""

from typing import Annotated, Self

from annotated_types import Ge
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from shared.storage import Folder
from shared.text.columns import ColumnNames, ScoredColumns
from shared.text.lengths import Lengths, Positions
from shared.text.tasks import TASKS
from student_train.recipe.decoding import Decoding

_ONLY_THESE_KEYS = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_ONLY_THESE_KEYS)
class DataSection(Lengths, Positions, ColumnNames):
    """[data]: files with gold labels to train on, instead of a dump.

    Attributes:
        labels: the label names in order; by default those that occur, sorted.
        tokenizer: a folder or hub id; by default the tokenizer of a pretrained student.
    """

    task: str
    train: tuple[str, ...] = Field(min_length=1)
    labels: tuple[str, ...] | None = None
    tokenizer: str | None = None
    max_length: Annotated[int, Ge(2)] = 512  # a row of a single token cannot be trained on

    @model_validator(mode="after")
    def _known_task(self) -> Self:
        trainable = [name for name, task in TASKS.items() if task.has_predictions]
        if self.task not in trainable:
            raise ValueError(f"task {self.task!r} is unknown here; the valid ones are {', '.join(trainable)}")
        return self


@dataclass(frozen=True, kw_only=True, config=_ONLY_THESE_KEYS)
class EvalSection(Positions, Decoding, ScoredColumns):
    """[eval]: held-out files to score the finished student on, and a dump of held-out rows to measure agreement."""

    data: tuple[str, ...] = Field(min_length=1)
    dump: Folder | None = None


@dataclass(frozen=True, kw_only=True, config=_ONLY_THESE_KEYS)
class PairsSection(ScoredColumns):
    """[validation.pairs]: files with pairs of texts and a score, on which embeddings are scored during training."""

    data: tuple[str, ...] = Field(min_length=1)
