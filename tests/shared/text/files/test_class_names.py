"""Numbers with names, as the `datasets` library writes labels to Parquet: what counts is the name."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.errors import CorpusError
from shared.text.columns import ColumnNames
from shared.text.corpus import Corpus
from shared.text.labels import label_index
from shared.text.tasks import task_named
from shared.text.tokenized import Tokenizing

NAMES = ["O", "B-PER", "I-PER"]


def write(path: Path, rows: list[dict[str, Any]], column: str, feature: Any) -> str:
    """A Parquet file with the metadata of the `datasets` library."""
    table = pa.Table.from_pylist(rows)
    metadata = {"huggingface": json.dumps({"info": {"features": {column: feature}}})}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return str(path)


def of(names: list[str]) -> dict[str, Any]:
    return {"names": names, "_type": "ClassLabel"}


def labels(task: str, path: str, classes: tuple[str, ...]) -> list[Any]:
    """The labels of all rows, as indices of a model's classes."""
    found = task_named(task)
    how = Tokenizing(None, 64, classes)  # type: ignore[arg-type]
    corpus = found.corpus(how, [path], found.columns(ColumnNames()))
    corpus.survey(check=lambda example: found.check_row(how, example))
    values = [example.label for example in corpus.examples()]
    return [
        [label_index(tag, classes) for tag in value] if isinstance(value, list) else label_index(value, classes)  # type: ignore[arg-type]
        for value in values
    ]


TAGGED = [{"tokens": ["a", "b", "c"], "ner_tags": [0, 1, 2]}, {"tokens": ["d"], "ner_tags": [-1]}]
FEATURES = [
    {"feature": of(NAMES), "length": -1, "_type": "Sequence"},
    {"feature": of(NAMES), "_type": "List"},
    [of(NAMES)],
]


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("O", "B-PER", "I-PER"), [0, 1, 2]),
        (("I-PER", "B-LOC", "O", "B-PER"), [2, 3, 0]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), [0, 1, 2]),
    ],
)
def test_tags_are_what_their_names_say(
    tmp_path: Path, feature: Any, classes: tuple[str, ...], expected: list[int]
) -> None:
    path = write(tmp_path / "a.parquet", TAGGED, "ner_tags", feature)
    assert labels("token-classification", path, classes) == [expected, [-100]]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("negative", "positive"), [0, 1]),
        (("NEGATIVE", "POSITIVE"), [0, 1]),
        (("Positive", "Negative"), [1, 0]),
        (("0", "1"), [0, 1]),
    ],
)
def test_labels_are_what_their_names_say(tmp_path: Path, classes: tuple[str, ...], expected: list[int]) -> None:
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}, {"text": "c", "label": -1}]
    path = write(tmp_path / "a.parquet", rows, "label", of(["negative", "positive"]))
    assert labels("sequence-classification", path, classes) == [*expected, -100]


def test_names_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 2}]
    path = write(tmp_path / "a.parquet", rows, "label", of(["world", "sport", "business"]))
    with pytest.raises(CorpusError, match="named world, sport, business, the model's no, yes, and they have none in"):
        labels("sequence-classification", path, ("no", "yes"))
    with pytest.raises(CorpusError, match="row 1: label 'business' is not one of the 2 labels: sport, world"):
        labels("sequence-classification", path, ("sport", "world"))
    odd = write(tmp_path / "b.parquet", [{"text": "a", "label": 7}], "label", of(["world", "sport", "x"]))
    with pytest.raises(CorpusError, match="label 7 has no name there; there are 3"):
        labels("sequence-classification", odd, ("sport", "world"))


def test_a_corpus_without_a_model_has_the_names_of_its_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", TAGGED, "ner_tags", FEATURES[0])
    columns = task_named("token-classification").columns(ColumnNames())
    corpus = Corpus([path], columns)
    assert corpus.label_names() == tuple(NAMES)
    assert corpus.survey().label_values == {"0", "1", "2"}


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": {"features": {"label": []}}}', b'{"info": 3}', b"\xff"])
def test_other_metadata_says_nothing(tmp_path: Path, metadata: bytes) -> None:
    table = pa.Table.from_pylist([{"text": "a", "label": 1}]).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    assert labels("sequence-classification", str(tmp_path / "a.parquet"), ("no", "yes")) == [1]
