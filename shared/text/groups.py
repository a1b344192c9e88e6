"""Scores of groups of rows, one for each value of a column (27 languages, say), and their mean.

The mean over groups counts every group alike, however many rows it has (XtremeDistil, arXiv 2004.05686, reports that of
per-language F1); the scores over all rows (micro) count every row alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from shared.dump.rowgroup import MISSING
from shared.text.predictions import Predictions


@dataclass(frozen=True)
class GroupScores:
    """The scores of each group that has gold labels.

    Attributes:
        column: the column whose values are the groups' names.
        rows: rows of each group, by name, in the order of the names; of questions, windows of their contexts.
        metrics: the task's metrics of each group.
    """

    column: str
    rows: dict[str, int]
    metrics: dict[str, dict[str, float]]

    @property
    def mean(self) -> dict[str, float]:
        """The mean over the groups of each metric."""
        scores = list(self.metrics.values())
        names = scores[0] if scores else {}
        return {name: fmean(each[name] for each in scores) for name in names}

    def table(self) -> list[str]:
        """Lines of one group each below a line of names, in columns, for people."""
        names = list(self.mean)
        cells = [[self.column, "rows", *(name.replace("_", " ") for name in names)]]
        for group, scores in self.metrics.items():
            cells.append([group, f"{self.rows[group]:,}", *(f"{scores[name]:.4f}" for name in names)])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in cells]


def score_groups(
    column: str, groups: Sequence[str], predictions: Predictions, metrics: Callable[[Predictions], dict[str, float]]
) -> GroupScores:
    """`metrics` of the rows of each group; `groups` names the group of each row by the row's number. A group without
    gold labels has no scores and is left out."""
    members: dict[str, list[int]] = {}
    for index, row in enumerate(predictions.rows):
        members.setdefault(groups[row], []).append(index)
    scores = {group: metrics(_part(predictions, members[group])) for group in sorted(members)}
    scored = {group: each for group, each in scores.items() if each}
    return GroupScores(column, {group: len(members[group]) for group in scored}, scored)


def _part(predictions: Predictions, indices: Sequence[int]) -> Predictions:
    """Some of the rows. What is summed over rows alone (the likelihood) is left out."""
    labels = [predictions.labels[index] for index in indices]
    rows = [predictions.rows[index] for index in indices]
    return Predictions(
        names=predictions.names,
        rows=rows,
        predicted=[predictions.predicted[index] for index in indices],
        labels=labels,
        labelled=sum(int((gold != MISSING).sum()) for gold in labels),
        notes={row: predictions.notes[row] for row in rows if row in predictions.notes},
        examples={row: predictions.examples[row] for row in rows if row in predictions.examples},
    )
