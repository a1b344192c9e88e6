"""A dump of a tiny teacher with the hidden states of its four layers, and a recipe to search maps for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from student_train.sweep import children
from tests.student_train.forked import Forked

TASK = "sequence-classification"
RECIPE = """
output = "{folder}/student"
dump = "{folder}/dump"

[student]
kind = "transformer"
layers = 2
hidden_size = 16
heads = 2

[[loss]]
kind = "kl"

[[loss]]
kind = "hidden"
map = "uniform"

[training]
epochs = 5
batch_size = 8
learning_rate = 1e-2
device = "cpu"
"""


@pytest.fixture(scope="package")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_teacher: Callable[..., Path],
    make_dump: Callable[..., Path],
    write_corpus: Callable[..., Path],
    toy_rows: Callable[..., list[dict[str, Any]]],
) -> Path:
    made = tmp_path_factory.mktemp("search")
    data = write_corpus(made / "rows.jsonl", toy_rows(TASK))
    teacher = make_teacher(TASK, num_hidden_layers=4)
    make_dump(TASK, teacher=teacher, data=data, out=made / "dump", hidden="all")
    make_dump(TASK, teacher=teacher, data=data, out=made / "one-layer", hidden="last")
    make_dump("encoder", out=made / "encoder", data=toy_rows("encoder"), hidden="all", relations="all")
    (made / "recipe.toml").write_text(RECIPE.format(folder=made))
    return made


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children.subprocess, "Popen", Forked)
