"""Pairs of texts with a score of their similarity, as embeddings are scored on them: each text is a row of its own.

Shapes: P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from shared.dump.reader import GroupSizes
from shared.dump.rowgroup import RowGroup
from shared.errors import UsageError
from shared.text.columns import ScoredColumns
from shared.text.examples import Example
from shared.text.rows import row_group
from shared.text.tasks import Task
from shared.text.tokenized import Tokenizing
from student_train.data.sources import TEXT_GROUP_ROWS, Source

FEWEST_PAIRS = 2


class _Texts(Source):
    """Texts as rows, without a teacher and gold labels."""

    def __init__(self, name: str, fingerprint: str, task: Task, how: Tokenizing, texts: Sequence[str]) -> None:
        self._groups: list[RowGroup] = []
        for first in range(0, len(texts), TEXT_GROUP_ROWS):
            part = texts[first : first + TEXT_GROUP_ROWS]
            rows = task.tokenize(how, [Example(text) for text in part], first)
            self._groups.append(row_group(rows, range(first, first + len(rows))))
        super().__init__(
            name=name,
            fingerprint=fingerprint,
            task=task,
            tokenizer=how.tokenizer,
            label_names=None,
            vocabulary=len(how.tokenizer),
            max_length=how.max_length,
            group_rows=tuple(len(group.rows) for group in self._groups),
            has_gold=False,
            layout=task.layout(how.positions),
            positions=how.positions,
        )

    def load(self, group: int, columns: Sequence[str]) -> RowGroup:
        return self._groups[group]

    def sizes(self, columns: Sequence[str]) -> GroupSizes:
        tokens = np.asarray([len(group.input_ids) for group in self._groups])
        return GroupSizes(np.asarray(self.group_rows), tokens, 4 * tokens)


@dataclass(frozen=True)
class ScoredPairs:
    """The pairs of some files.

    Attributes:
        texts: each text that occurs, once.
        first_P, second_P: the numbers of the pairs' texts in `texts`.
        scores_P: the pairs' scores, float64.
    """

    texts: Source
    first_P: NDArray[np.int64]
    second_P: NDArray[np.int64]
    scores_P: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        task: Task,
        paths: Sequence[str],
        names: ScoredColumns,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> "ScoredPairs":
        """Read the pairs of files.

        Raises:
            UsageError: if the task has no embeddings, no column of second texts is named, or all scores are equal.
            CorpusError: for a pair without a score, naming the file and the line.
        """
        task.check_tokenizer(tokenizer)
        how = Tokenizing(tokenizer, max_length, positions=task.check_positions(None))
        corpus = task.corpus(how, paths, task.scored_columns(names))
        survey = corpus.survey(check=lambda example: task.check_row(how, example))
        numbers: dict[str, int] = {}
        pairs, scores = [], []
        for example in corpus.examples():
            both = (str(example.text), str(example.pair))
            pairs.append([numbers.setdefault(text, len(numbers)) for text in both])
            assert isinstance(example.label, float)
            scores.append(example.label)
        where = ", ".join(paths)
        if len(set(scores)) < FEWEST_PAIRS:
            raise UsageError(
                f"{where}: the score of every pair is {scores[0]:g}, so that no correlation with it is defined; name "
                "the column of the scores, or give more pairs."
            )
        texts = _Texts(where, survey.fingerprint, task, how, list(numbers))
        first_P, second_P = np.asarray(pairs, np.int64).T
        return cls(texts, first_P, second_P, np.asarray(scores))

    def __len__(self) -> int:
        return len(self.scores_P)
