"""A tiny teacher of each task, its corpus and its dump; forward passes are timed no longer than they must be."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.text.tasks import TASKS
from student_train.scoring import evaluate

Rows = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session", autouse=True)
def _quick_latencies() -> Iterator[None]:
    """A few turns for each runtime and batch size, instead of a second of turns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "LATENCY_SECONDS", 0.0)
        yield


@pytest.fixture(scope="session")
def teachers(make_teacher: Callable[..., Path]) -> dict[str, Path]:
    return {task: make_teacher(task) for task in TASKS}


@pytest.fixture(scope="session")
def corpora(
    tmp_path_factory: pytest.TempPathFactory, write_corpus: Callable[..., Path], toy_rows: Rows
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    return {task: write_corpus(folder / f"{task}.jsonl", toy_rows(task)) for task in TASKS}


@pytest.fixture(scope="session")
def dumps(make_dump: Callable[..., Path], teachers: dict[str, Path], corpora: dict[str, Path]) -> dict[str, Path]:
    """One of each task; that of the encoder with the layer 2 that all have, and embeddings of rows."""
    return {task: make_dump(task, teacher=teachers[task], data=corpora[task], hidden="2") for task in TASKS}
