"""A folder to work in, as the examples of the docstrings expect it."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from student_train.scoring import evaluate

TASK = "sequence-classification"
RECIPE = """
output = "bilstm"
dump = "reviews"
[student]
kind = "bilstm"
embedding_size = 8
hidden_size = 8
[[loss]]
kind = "kl"
[training]
max_steps = 3
batch_size = 8
device = "cpu"
"""


@pytest.fixture(scope="session")
def furnished(
    tmp_path_factory: pytest.TempPathFactory,
    make_teacher: Callable[..., Path],
    write_corpus: Callable[[Path, Sequence[Any]], Path],
    toy_rows: Callable[..., list[dict[str, Any]]],
    make_dump: Callable[..., Path],
) -> Path:
    """models/teacher, reviews.jsonl (40 rows, some without a label), their dump out/demo/dump, and bilstm.toml."""
    folder = tmp_path_factory.mktemp("furnished")
    teacher = make_teacher(TASK, max_position_embeddings=512)
    shutil.copytree(teacher, folder / "models" / "teacher")
    data = write_corpus(folder / "reviews.jsonl", toy_rows(TASK, 40))
    out = folder / "out" / "demo" / "dump"
    make_dump(TASK, teacher=teacher, data=data, out=out, hidden="last", teacher_weights="all")
    (folder / "bilstm.toml").write_text(RECIPE)
    return folder


@pytest.fixture
def workplace(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working folder."""
    shutil.copytree(furnished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "LATENCY_SECONDS", 0.0)
    return tmp_path
