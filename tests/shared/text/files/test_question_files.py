"""Questions as people have them: SQuAD's own JSON, and rows of `datasets` with a column `answers`."""

import contextlib
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import CorpusError
from shared.text.columns import ColumnNames
from shared.text.corpus import Corpus
from shared.text.examples import Answers, Columns, Example
from shared.text.tasks import task_named

TASK = task_named("question-answering")
COLUMNS = TASK.columns(ColumnNames())
CONTEXT = "the quick brown fox\njumps over a lazy dog"
GOLD = {"which fox": Answers(("quick", "quick brown"), (4, 4)), "which cat": Answers(), "whose": None}
EXAMPLES = [Example(question, CONTEXT, label) for question, label in GOLD.items()]


def in_lists(gold: Answers | None) -> dict[str, Any] | None:
    return None if gold is None else {"text": [*gold.texts], "answer_start": [*gold.starts]}


def in_objects(gold: Answers) -> list[dict[str, Any]]:
    return [{"text": text, "answer_start": start} for text, start in zip(*gold, strict=True)]


ROWS = [
    {"id": str(at), "title": "Fox", "context": CONTEXT, "question": question, "answers": in_lists(gold)}
    for at, (question, gold) in enumerate(GOLD.items())
]
ASKED = [
    {"id": "x", "question": question}
    | ({} if gold is None else {"answers": in_objects(gold), "is_impossible": not gold.texts})
    | ({"plausible_answers": in_objects(GOLD["which fox"])} if question == "which cat" else {})  # type: ignore[arg-type]
    for question, gold in GOLD.items()
]
SQUAD = {
    "version": "v2.0",
    "data": [
        {"title": "Fox", "paragraphs": [{"context": CONTEXT, "qas": ASKED[:1]}]},
        {
            "title": "Cat",
            "paragraphs": [{"context": CONTEXT, "qas": ASKED[1:2]}, {"qas": ASKED[2:], "context": CONTEXT}],
        },
    ],
}


KEYS = ("data", "paragraphs", "qas", "context", "question", "answers", "text", "answer_start", "is_impossible")


def read(path: Path, columns: Columns = COLUMNS) -> list[Example]:
    return list(Corpus([str(path)], columns).examples())


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("value", [SQUAD, {"data": SQUAD["data"]}, SQUAD["data"], {"data": ROWS}, ROWS])
def test_one_value_of_json_holds_all_questions(tmp_path: Path, value: Any, indent: int | None, ending: str) -> None:
    path = tmp_path / f"a.json{ending}"
    content = json.dumps(value, indent=indent).encode()
    path.write_bytes(gzip.compress(content) if ending else content)
    assert read(path) == EXAMPLES


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rows_of_datasets_have_answers_in_one_column(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert read(path) == EXAMPLES
    assert read(path, TASK.columns(ColumnNames(answers_column="answers"))) == EXAMPLES
    assert Corpus([str(path)], COLUMNS).survey().labelled_rows == 2
    none = [Example(each.text, each.pair) for each in EXAMPLES]
    assert read(path, TASK.columns(ColumnNames(answers_column="none"))) == none


def test_the_usual_column_comes_first_and_both_forms_have_one_fingerprint(tmp_path: Path) -> None:
    flat = [
        {"question": each.text, "context": each.pair}
        | ({} if each.label is None else {"answer_texts": [*each.label[0]], "answer_starts": [*each.label[1]]})  # type: ignore[index]
        for each in EXAMPLES
    ]
    (tmp_path / "flat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flat))
    (tmp_path / "own.json").write_text(json.dumps(SQUAD))
    one, other = (Corpus([str(tmp_path / name)], COLUMNS).survey() for name in ("flat.jsonl", "own.json"))
    assert one.fingerprint == other.fingerprint
    both = flat[0] | {"answers": {"text": ["fox"], "answer_start": [16]}}
    (tmp_path / "both.jsonl").write_text(json.dumps(both))
    assert read(tmp_path / "both.jsonl") == EXAMPLES[:1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"data": [{"paragraphs": [{"context": "a"}]}]}, "article 0, paragraph 0: no list of 'qas'"),
        ({"data": [{"paragraphs": []}, {"title": "x"}]}, "article 1: no list of 'paragraphs'"),
        ({"data": [{"paragraphs": [{"context": "a", "qas": [3]}]}]}, "paragraph 0: expected an object for question 0"),
        ({"data": [{"paragraphs": [{"qas": [{"id": "q7", "question": "?"}]}]}]}, "question q7: column 'context' holds"),
        (
            {"data": [{"paragraphs": [{"context": "a", "qas": [{"question": "?", "answers": "a"}]}]}]},
            "must hold a list",
        ),
        ({"data": [1]}, "item 0: expected an object"),
        ({"rows": []}, "one object over several lines, without a list 'data'"),
    ],
)
def test_what_is_missing_is_named_with_its_place(tmp_path: Path, value: Any, message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value, indent=1))
    with pytest.raises(CorpusError, match=message):
        read(tmp_path / "a.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(KEYS), JSON), st.sampled_from([None, 1]))
@settings(max_examples=100)
def test_any_json_is_read_or_refused_with_a_sentence(value: Any, indent: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.json").write_text(json.dumps(value, indent=indent))
        with contextlib.suppress(CorpusError):
            read(Path(folder, "a.json"))


def test_lines_of_objects_stay_rows_whatever_their_keys(tmp_path: Path) -> None:
    rows = [{"text": f"row {number}", "data": [], "paragraphs": 3} for number in range(3)]
    (tmp_path / "a.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [each.text for each in read(tmp_path / "a.json", Columns("text"))] == ["row 0", "row 1", "row 2"]
    (tmp_path / "broken.jsonl").write_text('{"text": "a"\n{"text": "b"}\n')
    with pytest.raises(CorpusError, match="line 1: not valid JSON"):
        read(tmp_path / "broken.jsonl", Columns("text"))
