"""The table that a sweep prints: all models, the best first, and which of them are on a front."""

from collections.abc import Collection, Sequence

from student_train.sweep.front import fronts
from student_train.sweep.results import Summary

LEARNT_FROM = {"dump": "dump", "labels": "labels alone", "baseline": "(baseline)"}


def table(found: Sequence[Summary]) -> list[str]:
    """Return the lines of the table; models have the same numbers as in the plot."""
    header = ["", "model", "learnt from", found[0].metric, "seeds", "parameters", "agreement"]
    header += ["ms, 1 row", "ms, 32 rows", "s per run", "CPU s per run", "front"]
    on_front = fronts(found)
    rows = [header]
    for number, one in enumerate(found, 1):
        panels = {"size": on_front.by_size, "speed": on_front.by_speed}
        rows.append(
            [
                str(number),
                one.name,
                LEARNT_FROM[one.kind],
                score_text(one.score, one.deviation),
                str(one.seeds) if one.kind != "baseline" else "",
                f"{one.parameters:,}",
                _number(one.agreement, 4),
                _number(one.latency_ms.get("1"), 2),
                _number(one.latency_ms.get("32"), 2),
                _number(one.seconds, 0),
                _number(one.cpu_seconds, 0),
                ", ".join(name for name, members in panels.items() if number - 1 in members),
            ]
        )
    return aligned(rows, texts={1, 2, len(header) - 1})


def aligned(rows: Sequence[Sequence[str]], texts: Collection[int]) -> list[str]:
    """Return the lines of a table, a header and rows; the columns `texts` are aligned to the left, numbers to the
    right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) if at in texts else cell.rjust(width) for at, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return [lines[0].rstrip(), "-" * len(lines[0]), *(line.rstrip() for line in lines[1:])]


def score_text(score: float, deviation: float | None) -> str:
    """Return a score as text, with its standard deviation if there is one."""
    digits = 4 if abs(score) < 10 else 2
    return f"{score:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation is not None else "")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
