"""Files that are no text, have no end or no bounds: refused with a sentence, at once, in little memory."""

import gzip
import json
import os
import socket
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from shared.errors import CorpusError, LecternError, UsageError
from shared.text.columns import ColumnNames
from shared.text.corpus import Corpus
from shared.text.examples import TEXTS, Columns
from shared.text.files import streams
from shared.text.tasks import task_named

KINDS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".conll", ".jsonl.gz", ".txt.zst")


def refusal(path: Path | str, error: type[LecternError] = CorpusError, columns: Columns | None = None) -> str:
    """What is said about the file when it is surveyed."""
    columns = columns or Columns("text", label="label")
    if ".conll" in str(path):
        columns = task_named("token-classification").columns(ColumnNames())
    with pytest.raises(error) as raised:
        Corpus([str(path)], columns).survey()
    return str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_only_ordinary_files_are_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    for name, make in {
        "device": lambda path: os.symlink("/dev/zero", path),
        "pipe": os.mkfifo,
        "socket": lambda path: socket.socket(socket.AF_UNIX).bind(path),
    }.items():
        path = name + kind
        make(path)
        assert refusal(path).startswith(f"{path}: this is no ordinary file (but a device, a pipe or a socket)")
    os.mkdir("folder" + kind)
    assert refusal("folder" + kind).startswith(f"folder{kind}: this is a folder")
    os.symlink("nowhere", "dangling" + kind)
    assert refusal("dangling" + kind).startswith(f"dangling{kind}: there is no such file")
    os.symlink("circle" + kind, "circle" + kind)
    assert refusal("circle" + kind).startswith(f"circle{kind}: cannot be opened (Too many levels of symbolic links)")


@pytest.mark.parametrize(
    "name", ["a" * 300 + ".txt", "a\0.txt", "", ".", "/", "[", "a[.txt", "[]*.txt", "a" * 300 + "*"]
)
def test_names_that_no_file_has(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(name).endswith(".")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://bucket/a.jsonl", "s3:// needs a package that is not installed"),
        ("s3://bucket/*.jsonl", "s3:// needs a package that is not installed"),
        ("http://example.com/a.jsonl", "http:// needs a package that is not installed"),
        ("nonsense://a.jsonl", "this is no URL that fsspec can open (Protocol not known: nonsense)"),
    ],
)
def test_a_url_names_the_package_or_protocol_that_is_missing(url: str, reason: str) -> None:
    assert refusal(url, UsageError).startswith(f"{url}: {reason}")


def bomb(kind: str, size: int) -> bytes:
    """A file of one line of about this many characters."""
    text = "fox " * (size // 4)
    lines = {"txt": text, "jsonl": json.dumps({"text": text}), "json": json.dumps([text]), "csv": f'text\n"{text}"'}
    return lines.get(kind, f"text\n{text}").encode()


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "csv", "tsv", "conll"])
@pytest.mark.parametrize("compression", ["", "gz", "zst"])
def test_a_line_has_bounds(kind: str, compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is that of the bounds, not that of the line."""
    size = 50_000_000 if compression else 3_000_000
    monkeypatch.setattr(streams, "LONGEST_LINE", 1_000_000)
    monkeypatch.setattr(f"{streams.__name__.replace('streams', 'objects')}.LARGEST_DOCUMENT", 2_000_000)
    content = bomb(kind, size)
    if compression == "zst":
        content = pa.compress(content, "zstd", asbytes=True)
    path = tmp_path / f"a.{kind}{'.' if compression else ''}{compression}"
    path.write_bytes(gzip.compress(content, 1) if compression == "gz" else content)
    del content
    tracemalloc.start()
    try:
        said = refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "longer than " in said
    assert f"{path}, line " in said
    assert peak < 10_000_000


def test_a_document_of_many_lines_has_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.text.files.objects.LARGEST_DOCUMENT", 100_000)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "fox"}] * 10_000, indent=1))
    assert refusal(path).endswith("and read as a whole; write one object per line.")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": ' + "[" * 10_000 + "]" * 10_000 + "}", "not valid JSON (it is nested too deeply)"),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", "not valid JSON (an integer has more than 4,300 digits)"),
        ('{"text": "\\ud800"}', "'\\ud800' is half of a surrogate pair"),
        ('{"text": "a", "label": true}', "True is not a label"),
        ('{"text": "a", "label": Infinity}', "inf is not a label"),
        ('{"text": NaN}', "column 'text' holds nan, which is not text"),
        ('{"text": "a\0b"}', "not valid JSON (Invalid control character at)"),
    ],
)
def test_odd_json_is_named_by_its_line(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' + line + "\n")
    assert refusal(path).startswith(f"{path}, line 2: {reason}")


def test_a_byte_order_mark_and_nul_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a\\u0000b"}\r\n')
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\0b\r\n")
    for name in ("a.jsonl", "a.txt"):
        assert [row.text for row in Corpus([str(tmp_path / name)], Columns("text", shape=TEXTS)).examples()] == ["a\0b"]
