"""Words with tags in lines, as people have them: read by what they are, and refused where that is not certain."""

import contextlib
import gzip
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import CorpusError
from shared.text.columns import ColumnNames, ScoredColumns
from shared.text.corpus import Corpus
from shared.text.examples import Columns, Example
from shared.text.tasks import task_named

TASK = task_named("token-classification")
COLUMNS = TASK.columns(ColumnNames())
SENTENCES = [Example(["EU", "rejects", "German", "call"], None, ["B-ORG", "O", "B-MISC", "O"])]
SENTENCES += [Example(["#", "1"], None, ["O", "O"]), Example(["Peter\u00a0Blackburn"], None, ["B-PER"])]
FORMS = {
    "two columns": "EU B-ORG\nrejects O\nGerman B-MISC\ncall O\n\n# O\n1 O\n\nPeter\u00a0Blackburn B-PER\n",
    "tabs": "EU\tB-ORG\nrejects\tO\nGerman\tB-MISC\ncall\tO\n\t\n#\tO\n1\tO\n\nPeter\u00a0Blackburn\tB-PER",
    "CoNLL-2003": (
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\nGerman JJ B-NP B-MISC\ncall NN I-NP O\n\n\n"
        "# # B-NP O\n1 CD I-NP O\n\n-DOCSTART- -X- -X- O\n\nPeter\u00a0Blackburn NNP B-NP B-PER\n\n"
    ),
    "comments, CRLF": (
        "# id 1 domain=news\r\nEU _ _ B-ORG\r\nrejects _ _ O\r\nGerman _ _ B-MISC\r\ncall _ _ O\r\n\r\n"
        "# id 2 domain=news\r\n# _ _ O\r\n1 _ _ O\r\n\r\n# a b c\r\nPeter\u00a0Blackburn _ _ B-PER\r\n"
    ),
}


def read(path: Path, columns: Columns = COLUMNS) -> list[Example]:
    return list(Corpus([str(path)], columns).examples())


@pytest.mark.parametrize("ending", [".conll", ".bio", ".iob", ".iob2", ".txt", ".tsv"])
@pytest.mark.parametrize("form", FORMS)
def test_sentences_are_read_by_what_the_file_is(tmp_path: Path, form: str, ending: str) -> None:
    plain, packed = tmp_path / f"a{ending}", tmp_path / f"a{ending}.gz"
    plain.write_bytes(FORMS[form].encode())
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read(plain) == SENTENCES
    assert read(packed) == SENTENCES


def test_columns_have_the_names_that_the_user_gives(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text(FORMS["tabs"])
    assert read(tmp_path / "a.conll", TASK.columns(ColumnNames(tokens_column="w", tags_column="t"))) == SENTENCES
    unlabelled = [Example(each.text) for each in SENTENCES]
    assert read(tmp_path / "a.conll", TASK.columns(ColumnNames(tags_column="none"))) == unlabelled


def test_words_alone_have_no_gold_labels(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("EU\nrejects\n\nPeter\n")
    assert read(tmp_path / "a.conll") == [Example(["EU", "rejects"]), Example(["Peter"])]
    with pytest.raises(CorpusError, match="no column 'tags'"):
        Corpus([str(tmp_path / "a.conll")], TASK.scored_columns(ScoredColumns())).survey()


def test_a_text_file_of_sentences_stays_one(tmp_path: Path) -> None:
    lines = ["vitamin B-12", "blood group O", "to be or not", "", "one"]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
    assert [each.text for each in read(tmp_path / "a.txt")] == [line.split() for line in lines if line]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.txt",
            "EU B-ORG\nrejects O\ncall\n\nPeter B-PER\n",
            r"a.txt, line 3: no tag in the last column, though most",
        ),
        ("a.tsv", "word\ttag\nEU\tB-ORG\nrejects\tO\n", r"a.tsv, line 1: no tag in the last column, though most"),
        ("a.conll", "EU B-ORG\nrejects\n", r"a.conll, line 2: 1 columns where the lines before have 2"),
        ("a.conll", "EU\tB-ORG\nNew York\n", r"a.conll, line 2: 1 columns where"),
        ("a.conll", "EU\tB-ORG\n\tO\n", r"a.conll, line 2: 2 columns where .*a word in its first"),
        ("a.conll", "1 EU B-ORG\n2 rejects O\n", r"a.conll: the first column counts the words"),
        ("a.conll", "\n\n", r"no rows of text"),
    ],
)
def test_what_is_not_certain_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError, match=message):
        Corpus([str(tmp_path / name)], COLUMNS).survey()


def test_a_task_of_texts_says_what_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text(FORMS["tabs"])
    with pytest.raises(CorpusError, match="a CoNLL file, which has words with tags"):
        read(tmp_path / "a.conll", Columns("text"))


WORD = st.text(
    st.characters(exclude_characters="\t\r\n", exclude_categories=("Cs", "Zs", "Cc")), min_size=1, max_size=8
)
TAG = st.sampled_from(["O", "B-PER", "I-LOC", "S-x", "E-Y_2"])
NAMES = [".conll", ".txt", ".tsv"]


@given(st.lists(st.lists(st.tuples(WORD, TAG), min_size=2), min_size=1), st.sampled_from("\t "), st.sampled_from(NAMES))
@settings(max_examples=50)
def test_any_words_come_back(sentences: list[list[tuple[str, str]]], separator: str, ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{ending}")
        path.write_text("\n\n".join("\n".join(map(separator.join, each)) for each in sentences))
        found = [(each.text, each.label) for each in read(path)]
    assert found == [([word for word, _ in each], [tag for _, tag in each]) for each in sentences]


@given(st.text(), st.sampled_from(NAMES))
@settings(max_examples=50)
def test_any_text_is_read_or_refused_with_a_sentence(content: str, ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, f"a{ending}").write_bytes(content.encode())
        with contextlib.suppress(CorpusError):
            read(Path(folder, f"a{ending}"))


def test_a_file_without_blank_lines_is_not_one_row_of_any_length(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("EU B-ORG\n" * 100_001)
    with pytest.raises(CorpusError, match="line 100001: more than 100,000 words without a blank line"):
        read(tmp_path / "a.conll")
