"""Scores of groups of rows, one group for each value of a column (such as 27 languages), and their mean.

The mean over groups gives every group the same weight (XtremeDistil, arXiv 2004.05686, reports it for per-language F1);
the scores over all rows (micro) give every row the same weight.
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
        column: the column whose values are the names of the groups.
        rows: name of a group -> its number of rows (of windows, for questions), sorted by name.
        metrics: name of a group -> its metrics.
    """

    column: str
    rows: dict[str, int]
    metrics: dict[str, dict[str, float]]

    @property
    def mean(self) -> dict[str, float]:
        """The mean of each metric over the groups."""
        scores = list(self.metrics.values())
        names = scores[0] if scores else {}
        return {name: fmean(each[name] for each in scores) for name in names}

    def table(self) -> list[str]:
        """The lines of a table to print: a header, and one line for each group."""
        names = list(self.mean)
        cells = [[self.column, "rows", *(name.replace("_", " ") for name in names)]]
        for group, scores in self.metrics.items():
            cells.append([group, f"{self.rows[group]:,}", *(f"{scores[name]:.4f}" for name in names)])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in cells]


def score_groups(
    column: str, groups: Sequence[str], predictions: Predictions, metrics: Callable[[Predictions], dict[str, float]]
) -> GroupScores:
    """The metrics of each group; `groups` has the name of each row's group, at the row's number.

    Groups without gold labels have no scores and are left out.
    """
    members: dict[str, list[int]] = {}
    for index, row in enumerate(predictions.rows):
        members.setdefault(groups[row], []).append(index)
    scores = {group: metrics(_part(predictions, members[group])) for group in sorted(members)}
    scored = {group: each for group, each in scores.items() if each}
    return GroupScores(column, {group: len(members[group]) for group in scored}, scored)


def _part(predictions: Predictions, indices: Sequence[int]) -> Predictions:
    """The predictions of some rows, without the likelihood, which is only known as a sum over all rows."""
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
