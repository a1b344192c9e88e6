"""Corpora: every format gives the same rows, skipped blocks change nothing, and every bad value names its place."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.errors import CorpusError
from shared.text.corpus import Corpus, Example, Survey
from shared.text.examples import WORDS, Columns


def zstd(content: bytes) -> bytes:
    """The content of a .zst file."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


PLAIN = ("jsonl", "json", "pretty.json", "csv", "tsv", "parquet")
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd,
}
# Texts that fit every format: no tabs or newlines.
ROWS = [
    {"text": "plain", "other": "x", "label": "world"},
    {"text": 'a "quoted", comma', "other": "é", "label": "sport"},
    {"text": "日本語 🙂 ﷽", "other": "", "label": None},
    {"text": "", "other": " ", "label": "world"},
    {"text": "'single' \\backslash\\", "other": "z", "label": "sport"},
]
EXAMPLES = [Example(str(row["text"]), str(row["other"]), row["label"]) for row in ROWS]
LABELLED_PAIRS = Columns("text", "other", "label")


def serialise(rows: list[dict[str, Any]], kind: str, rows_kept: int | None = None) -> bytes:
    names = list(rows[0])
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if kind == "json":
        return json.dumps(rows).encode()
    if kind == "pretty.json":
        return json.dumps(rows, indent=2, ensure_ascii=False).encode()
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows)[:rows_kept], sink, row_group_size=2)
        return bytes(sink.getvalue())
    values = [names] + [["" if row[name] is None else str(row[name]) for name in names] for row in rows]
    if kind == "tsv":
        return "".join("\t".join(row) + "\n" for row in values).encode()
    quoted = [['"' + value.replace('"', '""') + '"' for value in row] for row in values]
    return "".join(",".join(row) + "\n" for row in quoted).encode()


def write(path: Path, content: bytes | str) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(path: str | list[str], columns: Columns = Columns("text"), limit: int | None = None) -> list[Example]:  # noqa: B008
    return list(Corpus([path] if isinstance(path, str) else path, columns, limit).examples())


def texts(path: str | list[str]) -> list[Any]:
    return [example.text for example in read(path)]


def survey(path: str | list[str], columns: Columns = LABELLED_PAIRS, **options: Any) -> Survey:
    return Corpus([path] if isinstance(path, str) else path, columns).survey(**options)


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", PLAIN)
def test_every_format_gives_the_same_rows_and_the_same_fingerprint(tmp_path: Path, kind: str, compression: str) -> None:
    path = write(tmp_path / f"rows.{kind}{compression}", COMPRESS[compression](serialise(ROWS, kind)))
    reference = write(tmp_path / "reference.jsonl", serialise(ROWS, "jsonl"))
    assert read(path, LABELLED_PAIRS) == EXAMPLES
    assert survey(path).fingerprint == survey(reference).fingerprint


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_text_file_has_a_row_a_line_and_none_for_blank_lines(tmp_path: Path, compression: str) -> None:
    content = 'first, "line"\n\nsecond\tline\r\n\r\n  third  \nno newline at the end'
    path = write(tmp_path / f"rows.txt{compression}", COMPRESS[compression](content.encode()))
    assert texts(path) == ['first, "line"', "second\tline", "  third  ", "no newline at the end"]


@pytest.mark.parametrize("kind", PLAIN[:-1])
def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_rows(tmp_path: Path, kind: str) -> None:
    content = b"\xef\xbb\xbf" + serialise(ROWS, kind).replace(b"\n", b"\r\n")
    assert read(write(tmp_path / f"rows.{kind}", content), LABELLED_PAIRS) == EXAMPLES


def test_a_quoted_csv_field_may_hold_newlines_commas_and_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,x\n"one\ntwo, ""three""",1\nfour,2\n\n')
    assert texts(path) == ['one\ntwo, "three"', "four"]


def test_a_stray_quote_in_tsv_is_an_ordinary_character(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tx\n"one\t1\nt"wo"\t2\n')
    assert texts(path) == ['"one', 't"wo"']


def test_blank_lines_of_jsonl_are_no_rows(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.jsonl", '\n{"text": "a"}\n  \n{"text": "b"}')) == ["a", "b"]


def test_frames_one_after_the_other_are_read_to_the_last(tmp_path: Path) -> None:
    for suffix, compress in COMPRESS.items():
        path = write(tmp_path / f"a.txt{suffix}", compress(b"one\n") + compress(b"two\n"))
        assert texts(path) == ["one", "two"], suffix


def test_a_column_of_parquet_that_nobody_asked_for_is_not_read(tmp_path: Path, monkeypatch: Any) -> None:
    path = write(tmp_path / "a.parquet", serialise(ROWS, "parquet"))
    asked: list[Any] = []
    original = pq.ParquetFile.iter_batches

    def spy(self: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(options["columns"])
        return original(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    read(path)
    assert asked == [["text"]]


# ---------------------------------------------------------------- files and limits


def test_files_come_in_the_order_given_and_those_of_a_glob_sorted(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.txt", f"{name}\n")
    write(tmp_path / "d.jsonl", '{"text": "d"}')
    assert texts(str(tmp_path / "*.txt")) == ["a", "b", "c"]
    assert texts([str(tmp_path / "c.txt"), str(tmp_path / "d.jsonl"), str(tmp_path / "a.txt")]) == ["c", "d", "a"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a[1].txt", "one\n")) == ["one"]


def test_a_url_is_read_like_a_path(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "one\n")
    assert texts(f"file://{tmp_path}/a.txt") == texts(f"file://{tmp_path}/*.txt") == ["one"]


@pytest.mark.parametrize("limit", [1, 3, 7, 99])
def test_a_limit_cuts_rows_across_files_everywhere(tmp_path: Path, limit: int) -> None:
    paths = [write(tmp_path / f"{name}.txt", "".join(f"{name}{i}\n" for i in range(4))) for name in "ab"]
    everything = read(paths)
    corpus = Corpus(paths, Columns("text"), limit)
    assert list(corpus.examples()) == everything[:limit]
    assert corpus.survey().rows == min(limit, 8)
    assert [row for *_, parse in corpus.blocks(3) for row in parse()] == everything[:limit]


def test_blocks_hold_the_rows_of_a_whole_reading(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", serialise(ROWS, "jsonl")) for name in "abcd"]
    everything = read(paths, LABELLED_PAIRS)
    found = list(Corpus(paths, LABELLED_PAIRS).blocks(3))
    assert [index for index, *_ in found] == list(range(-(-len(everything) // 3)))
    for index, first_row, parse in found:
        assert first_row == 3 * index
        assert parse() == everything[first_row : first_row + 3]


def test_blocks_that_are_passed_over_are_not_parsed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n{broken\n{"text": "c"}\n')
    found = [parse for *_, parse in Corpus([path], Columns("text")).blocks(1)]
    assert [found[0](), found[2]()] == [[Example("a")], [Example("c")]]
    with pytest.raises(CorpusError, match="line 2"):
        found[1]()


def is_refused(parse: Callable[[], list[Example]]) -> bool:
    try:
        parse()
    except CorpusError as error:
        return "the corpus has changed since this run began" in str(error)
    return False


@pytest.mark.parametrize("windows", [None, 3])
def test_a_block_holds_what_the_survey_found_there_or_is_refused(windows: int | None, tmp_path: Path) -> None:
    """Blocks of 4 rows; where each example becomes 3 rows, blocks cut examples apart."""
    path = tmp_path / "a.txt"
    lines = [f"row {number}" for number in range(10)]
    counts = None if windows is None else lambda _: windows
    corpus = Corpus([write(path, "\n".join(lines))], Columns("text"), windows=counts)
    corpus.survey(block_rows=4)

    def refused() -> list[int]:
        return [index for index, _, parse in corpus.blocks(4) if is_refused(parse)]

    assert refused() == []
    for number, hit in [(0, [0]), (5, [1]), (9, [2])] if windows is None else [(0, [0]), (5, [3, 4]), (9, [6, 7])]:
        write(path, "\n".join([*lines[:number], "another", *lines[number + 1 :]]))
        assert refused() == hit
    write(path, "\n".join([lines[1], lines[0], *lines[2:]]))
    assert refused() == ([0] if windows is None else [0, 1])
    write(path, "\n".join(lines))
    assert refused() == []


# ---------------------------------------------------------------- survey


def test_a_survey_counts_rows_and_labels(tmp_path: Path) -> None:
    found = survey(write(tmp_path / "a.jsonl", serialise(ROWS, "jsonl")))
    assert (found.rows, found.labelled_rows, found.label_values) == (5, 4, {"world", "sport"})
    assert list(found.sample) == EXAMPLES


def test_the_fingerprint_depends_on_content_and_order_and_not_on_names_or_files(tmp_path: Path) -> None:
    def fingerprint(name: str, rows: list[dict[str, Any]], columns: Columns = LABELLED_PAIRS) -> str:
        return survey(write(tmp_path / name, serialise(rows, "jsonl")), columns).fingerprint

    reference = fingerprint("a.jsonl", ROWS)
    halves = [write(tmp_path / f"{i}.csv", serialise(part, "csv")) for i, part in enumerate((ROWS[:2], ROWS[2:]))]
    assert survey(halves).fingerprint == reference
    assert survey(halves[::-1]).fingerprint != reference
    assert fingerprint("unread.jsonl", [{**row, "unread": 1} for row in ROWS]) == reference
    assert fingerprint("swapped.jsonl", [ROWS[1], ROWS[0], *ROWS[2:]]) != reference
    assert fingerprint("fewer.jsonl", ROWS[:-1]) != reference
    for column in ("text", "other", "label"):
        assert fingerprint("changed.jsonl", [{**ROWS[0], column: "changed"}, *ROWS[1:]]) != reference
    moved = [{**ROWS[0], "text": "plainx", "other": ""}, *ROWS[1:]]
    assert fingerprint("moved.jsonl", moved) != reference


def test_a_number_is_the_same_label_in_every_format(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": None}]
    found = {
        kind: survey(write(tmp_path / f"a.{kind}", serialise(rows, kind)), Columns("text", label="label"))
        for kind in PLAIN
    }
    assert {each.label_values for each in found.values()} == {frozenset({"0", "1"})}
    assert len({each.fingerprint for each in found.values()}) == 1


def test_the_sample_is_the_same_for_the_same_seed_and_spread_over_the_corpus(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "".join(f"{i}\n" for i in range(1000)))
    first, again, other = (survey(path, Columns("text"), sample_rows=100, seed=seed).sample for seed in (0, 0, 1))
    assert first == again != other
    numbers = sorted(int(str(example.text)) for example in first)
    assert len(set(numbers)) == 100
    assert 400 < sum(numbers) / 100 < 600


def test_a_failed_check_is_told_with_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "good\nbad\n")

    def check(example: Example) -> None:
        if example.text == "bad":
            raise CorpusError("no good.")

    with pytest.raises(CorpusError, match=r"a\.txt, line 2: no good\."):
        survey(path, Columns("text"), check=check)


# ---------------------------------------------------------------- labels and words


@pytest.mark.parametrize(
    ("value", "label"),
    [("null", None), ('""', None), ("NaN", None), ("1", "1"), ("1.0", "1"), ("-1", "-1"), ('"a"', "a")],
)
def test_labels_of_json(tmp_path: Path, value: str, label: str | None) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "a", "label": {value}}}\n')
    assert read(path, Columns("text", label="label")) == [Example("a", None, label)]


def test_integers_with_gaps_come_from_pandas_as_floats(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"], "label": [2.0, float("nan"), None]})
    pq.write_table(table, tmp_path / "a.parquet")
    labels = [row.label for row in read(str(tmp_path / "a.parquet"), Columns("text", label="label"))]
    assert labels == ["2", None, None]


def test_an_optional_label_column_may_be_absent(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\na\n")
    assert survey(path, Columns("text", label="label")).labelled_rows == 0


@pytest.mark.parametrize("limit", [None, 1])
def test_a_required_label_column_may_not_be_absent(tmp_path: Path, limit: int | None) -> None:
    path = write(tmp_path / "a.csv", "text\na\nb\n")
    columns = Columns("text", label="gold", label_required=True)
    with pytest.raises(CorpusError, match=r"no column 'gold' in .*a\.csv"):
        Corpus([path], columns, limit).survey()


def test_a_required_label_column_may_be_empty_and_absent_from_the_first_row(tmp_path: Path) -> None:
    columns = Columns("text", label="label", label_required=True)
    assert survey(write(tmp_path / "a.csv", "text,label\na,\n"), columns).labelled_rows == 0
    late = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "b", "label": "x"}\n')
    assert survey(late, columns).labelled_rows == 1


def test_words_carry_a_tag_each_and_missing_tags_are_allowed(tmp_path: Path) -> None:
    rows = [
        {"tokens": ["New", "York"], "tags": ["B", "I"]},
        {"tokens": ["now"], "tags": None},
        {"tokens": ["a", "b"], "tags": [None, "O"]},
    ]
    expected = [Example(["New", "York"], None, ["B", "I"]), Example(["now"]), Example(["a", "b"], None, [None, "O"])]
    columns = Columns("tokens", label="tags", shape=WORDS)
    for kind in ("jsonl", "json", "parquet"):
        assert read(write(tmp_path / f"a.{kind}", serialise(rows, kind)), columns) == expected
    found = survey(write(tmp_path / "a.jsonl", serialise(rows, "jsonl")), columns)
    assert (found.labelled_rows, found.label_values) == (2, {"B", "I", "O"})


def test_a_text_file_of_words_is_split_at_blanks(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", "New  York\n"), Columns("tokens", shape=WORDS)) == [Example(["New", "York"])]


# ---------------------------------------------------------------- bad input

NOT_JSON = b'{"text": "a"}\n{"text": \n'
EMPTY_PARQUET = serialise([{"text": "a"}], "parquet", rows_kept=0)
PARQUET = serialise([{"text": f"row {i}"} for i in range(1000)], "parquet")
LONG = "".join(f"{i} {hash(str(i))}\n" for i in range(20000)).encode()

BAD_FILES: dict[str, tuple[str, bytes, Columns, str]] = {
    "empty txt": ("a.txt", b"", Columns("text"), r"a\.txt: no rows of text"),
    "blank txt": ("a.txt", b"\n\n", Columns("text"), r"a\.txt: no rows of text"),
    "empty jsonl": ("a.jsonl", b"", Columns("text"), r"a\.jsonl: no rows of text"),
    "empty array": ("a.json", b"[]", Columns("text"), r"a\.json: no rows of text"),
    "empty csv": ("a.csv", b"", Columns("text"), r"a\.csv: no rows of text"),
    "csv of a header alone": ("a.csv", b"text\n", Columns("text"), r"a\.csv: no rows of text"),
    "empty parquet": ("a.parquet", b"", Columns("text"), r"a\.parquet: cannot be read to its end"),
    "parquet without rows": (
        "a.parquet",
        EMPTY_PARQUET,
        Columns("text"),
        r"a\.parquet: no rows of text",
    ),
    "missing column, csv": (
        "a.csv",
        b"body,label\na,1\n",
        Columns("text"),
        r"a\.csv: no column 'text'; .*'body', 'label'",
    ),
    "missing column, json": ("a.jsonl", b'{"body": 1, "x": 2}\n', Columns("text"), r"no column 'text'; .*'body', 'x'"),
    "missing column, parquet": (
        "a.parquet",
        serialise([{"body": "a", "x": 1}], "parquet"),
        Columns("text"),
        r"a\.parquet: no column 'text'; it has 'body', 'x'",
    ),
    "missing pair column": (
        "a.csv",
        b"text\na\n",
        Columns("text", "second"),
        r"a\.csv: no column 'second'; it has 'text'",
    ),
    "missing pair column, txt": (
        "a.txt",
        b"a\n",
        Columns("text", "second"),
        r"a\.txt: no column 'second'; it has 'text'",
    ),
    "number for text": (
        "a.jsonl",
        b'{"text": "a"}\n{"text": 5}\n',
        Columns("text"),
        r"a\.jsonl, line 2: .*'text' holds 5, .*not text",
    ),
    "null for text": ("a.jsonl", b'{"text": "a"}\n{"text": null}\n', Columns("text"), r"line 2: .* holds None"),
    "a later row lacks the column": (
        "a.jsonl",
        b'{"text": "a"}\n{"body": "b"}\n',
        Columns("text"),
        r"line 2: .*'text'",
    ),
    "number for text, array": (
        "a.json",
        b'[{"text": "a"}, {"text": 5}]',
        Columns("text"),
        r"a\.json, item 1: .* holds 5",
    ),
    "number for text, parquet": (
        "a.parquet",
        serialise([{"text": 5}], "parquet"),
        Columns("text"),
        r"a\.parquet, row 0: .* 5",
    ),
    "null in parquet": (
        "a.parquet",
        serialise([{"text": "a"}] * 1500 + [{"text": None}], "parquet"),
        Columns("text"),
        r"a\.parquet, row 1500: .*None",
    ),
    "invalid UTF-8": ("a.txt", b"fine\nna\xefve\n", Columns("text"), r"a\.txt, line 2: byte 0xef is not valid UTF-8"),
    "invalid UTF-8, csv": ("a.csv", b"text\nfine\n\xff\n", Columns("text"), r"a\.csv, line 3: byte 0xff"),
    "invalid UTF-8, gz": ("a.txt.gz", gzip.compress(b"a\n\xff\n"), Columns("text"), r"a\.txt\.gz, line 2: byte 0xff"),
    "half a character": (
        "a.jsonl",
        b'{"text": "\\ud83d"}\n',
        Columns("text"),
        r"a\.jsonl, line 1: .*half of a surrogate pair",
    ),
    "bad JSON": ("a.jsonl", NOT_JSON, Columns("text"), r"a\.jsonl, line 2: not valid JSON"),
    "bad JSON array": (
        "a.json",
        b'\n[\n{"text": "a"},\n{"text" "b"}\n]',
        Columns("text"),
        r"a\.json, line 4: not valid JSON",
    ),
    "JSON that is no object": ("a.jsonl", b'"text"\n', Columns("text"), r"a\.jsonl, line 1: expected one JSON object"),
    "array of no objects": ("a.json", b'[{"text": "a"}, 3]', Columns("text"), r"a\.json, item 1: expected an object"),
    "too many fields": ("a.csv", b"text,x\na,1\nb,2,3\n", Columns("text"), r"a\.csv, line 3: 3 fields where .* 2"),
    "too few fields": ("a.tsv", b"text\tx\na\n", Columns("text"), r"a\.tsv, line 2: 1 fields where .* 2"),
    "quote never closed": ("a.csv", b'text,x\n"a,1\nb,2\n', Columns("text"), r"a\.csv, line 3: "),
    "quote inside a field": ("a.csv", b'text,x\n"a"b,1\n', Columns("text"), r"a\.csv, line 2: "),
    "parquet cut short": ("a.parquet", PARQUET[:-300], Columns("text"), r"a\.parquet: cannot be read"),
    "parquet in name only": ("a.parquet", b"text\n" * 99, Columns("text"), r"a\.parquet: cannot be read"),
    "gz cut short": ("a.txt.gz", gzip.compress(LONG)[:-500], Columns("text"), r"a\.txt\.gz: cannot be read to its end"),
    "zst cut short": (
        "a.txt.zst",
        zstd(LONG)[:-500],
        Columns("text"),
        r"a\.txt\.zst: cannot be read to its end",
    ),
    "gz in name only": ("a.txt.gz", LONG, Columns("text"), r"a\.txt\.gz: cannot be read"),
    "zst in name only": ("a.csv.zst", LONG, Columns("text"), r"a\.csv\.zst: cannot be read"),
    "a list for a label": (
        "a.jsonl",
        b'{"text": "a", "label": [1]}\n',
        Columns("text", label="label"),
        r"a\.jsonl, line 1: \[1\] is not a label",
    ),
    "half a label": (
        "a.jsonl",
        b'{"text": "a", "label": 0.5}\n',
        Columns("text", label="label"),
        r"line 1: 0.5 is not a label",
    ),
    "a string for words": (
        "a.jsonl",
        b'{"tokens": "a b"}\n',
        Columns("tokens", shape=WORDS),
        r"a\.jsonl, line 1: column 'tokens' must hold a list of words, but holds 'a b'",
    ),
    "a number among words": (
        "a.jsonl",
        b'{"tokens": ["a", 1]}\n',
        Columns("tokens", shape=WORDS),
        r"line 1: .*list of words",
    ),
    "fewer tags than words": (
        "a.jsonl",
        b'{"tokens": ["a", "b"], "tags": ["O"]}\n',
        Columns("tokens", label="tags", shape=WORDS),
        r"a\.jsonl, line 1: column 'tags' must hold one tag for each of the 2 words",
    ),
    "one tag for all words": (
        "a.jsonl",
        b'{"tokens": ["a"], "tags": "O"}\n',
        Columns("tokens", label="tags", shape=WORDS),
        r"line 1: column 'tags' must hold one tag",
    ),
    "unknown kind": (
        "a.docx",
        b"x",
        Columns("text"),
        r"a\.docx: unknown kind of file; Lectern reads \.txt, .*\.parquet",
    ),
    "unknown kind, compressed": ("a.gz", b"x", Columns("text"), r"a\.gz: unknown kind of file"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_with_their_place(tmp_path: Path, case: str) -> None:
    name, content, columns, message = BAD_FILES[case]
    with pytest.raises(CorpusError, match=message) as raised:
        survey(write(tmp_path / name, content), columns)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_a_missing_file_a_folder_and_a_pattern_without_matches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"absent\.txt: there is no such file"):
        read(str(tmp_path / "absent.txt"))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(CorpusError, match=r"folder\.txt: this is a folder"):
        read(str(tmp_path / "folder.txt"))
    with pytest.raises(CorpusError, match=r"unknown kind of file"):
        read(str(tmp_path))
    with pytest.raises(CorpusError, match=r"\*\.csv: no file matches"):
        read(str(tmp_path / "*.csv"))


def test_the_second_file_of_two_is_the_one_that_is_named(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.csv", "text\na\n"), write(tmp_path / "bad.csv", "body\na\n")
    with pytest.raises(CorpusError, match=rf"{os.path.basename(bad)}: no column 'text'"):
        read([good, bad])
