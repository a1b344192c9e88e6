"""The Pareto plot of a sweep: score against parameters, score against latency.

The number in a mark is the number of the model in the table; a list beside the plot gives their names.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shared.plotting import figure_type
from shared.storage.files import write_atomically
from student_train.sweep.front import BATCH, fronts
from student_train.sweep.results import Kind, Summary

# Kind -> (mark, colour, name in the legend).
MARKS: dict[Kind, tuple[str, str, str]] = {
    "dump": ("o", "#0b6e99", "learnt from the dump"),
    "labels": ("s", "#c8553d", "learnt from labels alone, no teacher"),
    "baseline": ("*", "#444444", "baseline"),
}
MARK_SIZE, STAR_SIZE = 190.0, 430.0  # points squared
LONGEST_LIST = 26  # number of names that fit beside the plot
LONGEST_NAME = 44


def plot(found: Sequence[Summary], title: str, file: Path) -> None:
    """Plot the models of a table into a PNG file. Raises UsageError if matplotlib is not installed."""
    new_figure = figure_type()
    on_front = fronts(found)
    figure = new_figure(figsize=(14.5, 5.6), layout="constrained")
    left, right, beside = figure.subplots(1, 3, width_ratios=(5, 5, 4))
    left.sharey(right)
    _panel(left, found, on_front.by_size, lambda one: one.parameters)
    _panel(right, found, on_front.by_speed, lambda one: one.latency_ms[BATCH])
    left.set(xlabel="parameters", ylabel=f"{found[0].metric} (mean, standard deviation over seeds)")
    right.set(xlabel="milliseconds for one row")
    if found[0].score * found[0].merit < 0:
        left.invert_yaxis()  # lower scores are better: the best stays on top
    _list(beside, found, {*on_front.by_size, *on_front.by_speed})
    figure.suptitle(title, x=0.01, ha="left")
    write_atomically(file, lambda path: figure.savefig(path, dpi=130, format="png"))


def _panel(axes: Any, found: Sequence[Summary], on_front: Sequence[int], cost: Callable[[Summary], float]) -> None:
    axes.set_xscale("log")
    members = [found[index] for index in on_front]
    axes.step([*map(cost, members)], [one.score for one in members], where="post", color="#7fb2c9", lw=2, zorder=1)
    for number, one in enumerate(found, 1):
        layer = 3 - number / len(found)  # the best in front, and each number in front of its own mark only
        mark, colour, _ = MARKS[one.kind]
        is_on_front, is_baseline = number - 1 in on_front, one.kind == "baseline"
        axes.errorbar(cost(one), one.score, yerr=one.deviation, color=colour, capsize=3, lw=1, zorder=1.5)
        axes.scatter(
            cost(one),
            one.score,
            s=STAR_SIZE if is_baseline else MARK_SIZE,
            marker=mark,
            facecolor=colour if is_on_front or is_baseline else "white",
            edgecolor=colour,
            zorder=layer,
        )
        if is_baseline:
            axes.axhline(one.score, color=colour, linestyle="--", lw=1, zorder=0)
            axes.annotate(one.name, (cost(one), one.score), (0, 12), textcoords="offset points", ha="center")
        else:
            text = {"color": "white" if is_on_front else colour, "fontsize": 7.5, "ha": "center", "va": "center"}
            axes.annotate(str(number), (cost(one), one.score), zorder=layer + 0.5 / len(found), **text)
    widen(axes, [cost(one) for one in found])
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(color="#eeeeee")


def widen(axes: Any, costs: list[float]) -> None:
    """Add space around the outermost marks, and label the axis with a few round numbers for any range of costs."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = min(costs) / 1.3, max(costs) * 1.3
    axes.set_xlim(low, high)
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high / low > 5 else MaxNLocator(4))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: float) -> str:
    """Format a number: 12, 3.5 K, 20 M."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " K")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _list(axes: Any, found: Sequence[Summary], on_front: set[int]) -> None:
    """Draw the list of numbers and names, with the legend of the marks above it.

    If there are too many models, the list has those on a front and the best of the others.
    """
    axes.set_axis_off()
    students = [index for index, one in enumerate(found) if one.kind != "baseline"]
    named = sorted(sorted(students, key=lambda index: index not in on_front)[:LONGEST_LIST])
    lines = [f"{index + 1:>3}  {_cut(found[index].name)}" for index in named]
    if len(named) < len(students):
        lines.append(f"     and {len(students) - len(named)} more: see results.csv")
    axes.text(0, 0.8, "\n".join(lines), family="monospace", fontsize=8, va="top", transform=axes.transAxes)
    for kind in dict.fromkeys(one.kind for one in found):
        mark, colour, name = MARKS[kind]
        axes.scatter([], [], s=90, marker=mark, color=colour, label=name)
    axes.plot([], [], color="#7fb2c9", lw=2, label="front (its members are filled)")
    axes.legend(loc="upper left", frameon=False, borderpad=0)


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
