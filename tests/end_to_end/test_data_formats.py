"""Data as people have it gives the same dump, the same student and the same scores as Lectern's own columns."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from shared import Dump
from shared.text.columns import ScoredColumns
from student_train import distill
from student_train.recipe.recipe import Recipe
from student_train.scoring import evaluate as scoring
from tests.conftest import TAGS

NER, READING = "token-classification", "question-answering"


@pytest.fixture(scope="module", params=[NER, READING])
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def files(task: str, toy_rows: Any, write_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same rows in Lectern's own columns, and as others have them."""
    folder = tmp_path_factory.mktemp("files")
    gold = "tags" if task == NER else "answer_texts"
    rows = [row for row in toy_rows(task, 24) if row.get(gold) is not None]
    own = Path(write_corpus(folder / "own.jsonl", rows))
    if task == NER:
        conll = folder / "ner.conll"
        pairs = [zip(row["tokens"], row["tags"], strict=True) for row in rows]
        conll.write_text("\n\n".join("\n".join(f"{word} _ {tag}" for word, tag in each) for each in pairs))
        names = [*reversed(TAGS)]  # another order than the model's
        numbers = [{"tokens": row["tokens"], "ner_tags": [names.index(tag) for tag in row["tags"]]} for row in rows]
        feature = {"ner_tags": {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "List"}}
        metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
        table = pa.Table.from_pylist(numbers).replace_schema_metadata(metadata)
        pq.write_table(table, folder / "named.parquet")
        return [own, conll, folder / "named.parquet"]
    starts = [{"text": row["answer_texts"], "answer_start": row["answer_starts"]} for row in rows]
    flat = [
        {"question": row["question"], "context": row["context"], "answers": answers}
        for row, answers in zip(rows, starts, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(flat), folder / "datasets.parquet")
    articles = [
        {
            "title": "",
            "paragraphs": [{"context": row["context"], "qas": [{"question": row["question"], "answers": each}]}],
        }
        for row, answers in zip(rows, starts, strict=True)
        for each in [[{"text": t, "answer_start": s} for t, s in zip(*answers.values(), strict=True)]]
    ]
    (folder / "squad.json").write_text(json.dumps({"version": "1.1", "data": articles}))
    return [own, folder / "datasets.parquet", folder / "squad.json"]


def test_dumps_are_the_same(task: str, files: list[Path], make_teacher: Any, make_dump: Any) -> None:
    teacher = make_teacher(task)
    first, *others = [Dump(make_dump(task, teacher=teacher, data=file)) for file in files]
    assert first.manifest.labelled
    for other in others:
        assert other.manifest.identity == first.manifest.identity
        assert_frame_equal(first.scan().collect(), other.scan().collect())


def test_scores_and_students_are_the_same(
    task: str, files: list[Path], make_teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LATENCY_SECONDS", 0.001)
    teacher = Path(make_teacher(task))
    scores = [scoring.evaluate(teacher, [str(file)], ScoredColumns(), device="cpu").metrics for file in files]
    assert scores[0]
    assert scores[1:] == [scores[0]] * 2

    def trained(file: Path) -> dict[str, float]:
        recipe = {
            "output": tmp_path / file.name,
            "data": {"task": task, "train": [str(file)], "tokenizer": str(teacher), "max_length": 32},
            "student": {"kind": "bilstm", "embedding_size": 8, "hidden_size": 8},
            "loss": [{"kind": "gold"}],
            "training": {"max_steps": 2, "batch_size": 4, "learning_rate": 0.01, "device": "cpu"},
            "eval": {"data": [str(file)]},
        }
        report = distill.run(Recipe.model_validate(recipe), resume=False).report
        assert report is not None
        return report.metrics

    assert all(trained(file) for file in files[1:])
