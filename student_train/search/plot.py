"""The plot of a search: its generations with the controls as lines, and the maps that were confirmed, seed by seed."""

import statistics
from pathlib import Path
from typing import Any

from shared.plotting import figure_type
from shared.storage.files import write_atomically
from student_train.search.results import Results, Row

FOUND, CONTROL, PALE = "#0b6e99", "#c8553d", "#9db8c4"


def plot(results: Results, title: str, file: Path) -> None:
    """Plot a search into a PNG file. Raises UsageError if matplotlib is not installed."""
    new_figure = figure_type()
    figure = new_figure(figsize=(14.0, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(5, 4))
    _generations(left, results)
    _confirmed(right, results)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    figure.suptitle(title, x=0.01, ha="left")
    write_atomically(file, lambda path: figure.savefig(path, dpi=130, format="png"))


def _generations(axes: Any, results: Results) -> None:
    """Draw every map at the whole budget, the best so far, and a line for each control."""
    from matplotlib.ticker import MaxNLocator

    sign = results.fitness.merit(1.0)
    best: list[float] = []
    for number, one in enumerate(results.history, 1):
        scores = [sign * merit for merit in one.merits.values()]
        axes.scatter([number] * len(scores), scores, s=34, color=PALE, edgecolor="white", lw=0.5, zorder=2)
        top = max(one.merits.values())
        best.append(max(top, best[-1]) if best else top)
    numbers = range(1, len(best) + 1)
    axes.step(numbers, [sign * merit for merit in best], where="post", color=FOUND, lw=2, zorder=3)
    axes.scatter(numbers, [sign * merit for merit in best], s=42, color=FOUND, zorder=4, label="best so far")
    axes.scatter([], [], s=34, color=PALE, label="a map at the whole budget")
    controls = [row for row in results.rows if row.control is not None]
    for row in controls:
        axes.axhline(row.found.score, color=CONTROL, lw=1, ls="--" if row.is_a_map else ":", zorder=1)
    axes.set_xlim(0.6, len(best) + 0.4)
    axes.margins(y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="generation", ylabel=_label(results))
    if results.fitness.less_is_better:
        axes.invert_yaxis()
    _names_beside(axes, controls)
    axes.plot([], [], color=CONTROL, lw=1, ls="--", label="controls")
    axes.legend(loc="lower center", ncols=3, frameon=False, bbox_to_anchor=(0.5, 1.0))
    axes.grid(axis="y", color="#eeeeee")


def _names_beside(axes: Any, controls: list[Row]) -> None:
    """Write the controls' names at the right, moved apart where their lines are too near to each other."""
    low, high = axes.get_ylim()
    gap, last = 0.045, -1.0
    for row in sorted(controls, key=lambda row: (row.found.score - low) / (high - low)):
        at = (row.found.score - low) / (high - low)
        last = max(at, last + gap)
        axes.annotate(
            row.control,
            (1.0, at),
            (1.03, last),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=8,
            color=CONTROL,
            va="center",
            arrowprops={"arrowstyle": "-", "color": CONTROL, "lw": 0.5},
            annotation_clip=False,
        )


def _confirmed(axes: Any, results: Results) -> None:
    """Draw the scores of each map that was confirmed and their mean, the best map on top. What a seed does to all maps
    alike (its rows are held out, its initial weights) is taken away: zero is the mean of all maps at the same seed."""
    usual_S = [statistics.mean(scores) for scores in zip(*(row.scores for row in results.rows), strict=True)]
    for place, row in enumerate(results.rows):
        colour = FOUND if row.control is None else CONTROL
        apart_S = [score - usual for score, usual in zip(row.scores, usual_S, strict=True)]
        axes.scatter(apart_S, [place] * len(apart_S), s=26, color=colour, alpha=0.45, edgecolor="none")
        axes.plot([statistics.mean(apart_S)], [place], marker="|", markersize=16, markeredgewidth=2.5, color=colour)
    axes.axvline(0, color="#888888", lw=1, zorder=0)
    names = [" ".join(map(str, row.genome)) + f"  ({row.control or 'search'})" for row in results.rows]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.05)
    seeds = len(results.seeds)
    which = f"{seeds} other seeds and their mean" if seeds else "the search's seed"
    axes.set_xlabel(f"{results.fitness.name} minus the mean at the same seed\n({which})")
    axes.grid(axis="x", color="#eeeeee")


def _label(results: Results) -> str:
    better = "lower is better" if results.fitness.less_is_better else "higher is better"
    return f"{results.fitness.name} after {results.steps:,} steps ({better})"
