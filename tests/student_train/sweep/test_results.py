"""The results of a sweep: means over seeds, the best first, and the students on a Pareto front."""

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from shared.errors import UsageError
from student_train.sweep import pareto
from student_train.sweep.front import front, fronts
from student_train.sweep.results import Scored, Summary, _column, summaries
from student_train.sweep.table import table

SUMMARY = Summary("a", "dump", "accuracy", 0.5, 0.01, 2, 1000, {"1": 1.0, "32": 9.0}, 0.7, 10.0, 20.0)


def scored(group: str, score: float, seed: int = 0, metric: str = "accuracy", **entries: Any) -> Scored:
    metrics = {"metrics": {metric: score, "other": 0.1}, "parameters": 1000, "latency_ms": {"1": 1.0, "32": 9.0}}
    return Scored(f"{group}_seed={seed}", group, "dump", {**metrics, **entries}, 10.0 + seed, 20.0)


def test_seeds_become_mean_and_deviation() -> None:
    runs = [
        scored("a", score, seed, agreement=agreement, latency_ms={"1": latency, "32": 9.0})
        for seed, (score, agreement, latency) in enumerate([(0.5, 0.7, 1.0), (0.6, 0.8, 1.5), (0.7, 0.9, 40.0)])
    ]
    (found,) = summaries(runs)
    assert (found.score, found.deviation, found.seeds) == (pytest.approx(0.6), pytest.approx(0.1), 3)
    assert (found.agreement, found.latency_ms["1"], found.seconds) == (pytest.approx(0.8), 1.5, 11.0)
    (alone,) = summaries(runs[:1])
    assert (alone.deviation, alone.seeds) == (None, 1)


def test_the_best_comes_first_and_of_perplexities_the_lowest() -> None:
    assert [one.name for one in summaries([scored("a", 0.5), scored("b", 0.9), scored("c", 0.7)])] == ["b", "c", "a"]
    runs = [scored("a", 50.0, metric="perplexity"), scored("b", 90.0, metric="perplexity")]
    assert [one.name for one in summaries(runs)] == ["a", "b"]


def test_a_baseline_of_a_groups_name_is_another_model() -> None:
    found = summaries([scored("a", 0.5), replace(scored("a", 0.6), kind="baseline")])
    assert [(one.kind, one.seeds) for one in found] == [("baseline", 1), ("dump", 1)]


def test_the_front_is_what_no_other_point_dominates() -> None:
    choose = random.Random(0)
    for _ in range(200):
        points = {index: (choose.randint(1, 6), choose.randint(1, 6)) for index in range(choose.randint(1, 9))}
        expected = {
            index
            for index, (cost, merit) in points.items()
            if not any(other[0] <= cost and other[1] >= merit and other != (cost, merit) for other in points.values())
        }
        found = front(points)
        assert set(found) == expected
        assert [points[index][0] for index in found] == sorted(points[index][0] for index in found)


def test_fronts_are_of_students_and_of_merit() -> None:
    teacher = replace(SUMMARY, kind="baseline", score=0.9, parameters=10, latency_ms={"1": 0.1, "32": 1.0})
    small = replace(SUMMARY, score=0.4, parameters=500, latency_ms={"1": 2.0, "32": 9.0})
    assert fronts([teacher, SUMMARY, small]).by_size == (2, 1)
    assert fronts([teacher, SUMMARY, small]).by_speed == (1,)
    worse = replace(SUMMARY, metric="perplexity", score=50.0)
    better = replace(SUMMARY, metric="perplexity", score=20.0)
    assert fronts([better, worse]).by_size == (0,)


def test_the_table_names_scores_and_fronts() -> None:
    teacher = Summary(
        "teacher", "baseline", "accuracy", 0.9, None, 1, 22_700_000, {"1": 15.5, "32": 99.0}, 1.0, None, None
    )
    labels = replace(SUMMARY, name="labels", kind="labels", score=0.3, deviation=None, seeds=1)
    lines = table([teacher, SUMMARY, labels])
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert cells[0][:3] == ["model", "learnt from", "accuracy"]
    assert cells[2] == ["1", "teacher", "(baseline)", "0.9000", "22,700,000", "1.0000", "15.50", "99.00"]
    assert cells[3] == [
        "2", "a", "dump", "0.5000 ± 0.0100", "2", "1,000", "0.7000", "1.00", "9.00", "10", "20", "size, speed",
    ]  # fmt: skip
    assert cells[4][2:4] == ["labels alone", "0.3000"]
    assert cells[4][-1] == "20"  # on no front


def test_a_column_holds_values_of_one_kind() -> None:
    assert _column([1, None, 2.5]) == [1.0, None, 2.5]
    assert _column([1, None]) == [1, None]
    assert _column([True, "class", None]) == ["true", "class", None]
    assert _column([["a", "b"], {"kind": "bilstm"}]) == ['["a", "b"]', '{"kind" = "bilstm"}']
    for values in ([1, 2.5], [True, 2], [[1], "a"], [None, None]):
        pl.DataFrame({"column": _column(values)}).write_csv()


def test_the_plot_is_drawn_for_one_model_or_many_and_says_when_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [
        replace(SUMMARY, name=str(index), score=1 / (1 + index), parameters=1000 * index + 1) for index in range(40)
    ]
    for found in ([SUMMARY], many, [replace(SUMMARY, metric="perplexity", score=20.0)]):
        pareto.plot(found, "title", tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install 'lectern\[plot\]'"):
        pareto.plot([SUMMARY], "title", tmp_path / "plot.png")
