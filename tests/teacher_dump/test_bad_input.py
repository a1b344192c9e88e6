"""Whatever is wrong with a `dump` command: one paragraph that names it, the right exit code, nothing half-written."""

import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from shared import Dump
from shared.cli import run
from shared.text.tasks import task_named
from teacher_dump import annotate as annotate_module
from teacher_dump import cli

FAILED, WRONG_CALL, INTERRUPTED = 1, 2, 130


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, its error paragraph on one line, and what it said before."""

    code: int
    error: str
    said: str


@pytest.fixture
def dump(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """dump(teacher=..., max_length=8, dense=True, ...) runs the command line in this process."""

    def command(**options: Any) -> Ended:
        words = ["dump"]
        for name, value in ({"max_length": 64, "device": "cpu", "shard_rows": 4} | options).items():
            flag = f"--{name.replace('_', '-')}"
            words += [flag] if value is True else [] if value is None else [flag, str(value)]
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ending:
            run(cli.app)
        said, errors = capsys.readouterr()
        assert "Traceback" not in errors
        before, _, error = errors.partition("error: ")
        return Ended(int(ending.value.code or 0), " ".join(error.split()), said + before)

    return command


@pytest.fixture(scope="module")
def teachers(make_teacher: Any) -> dict[str, Path]:
    tasks = ("causal-lm", "masked-lm", "sequence-classification", "token-classification", "encoder")
    return {task: make_teacher(task) for task in tasks}


@pytest.fixture
def base(teachers: dict[str, Path], write_corpus: Any, toy_rows: Any, tmp_path: Path) -> dict[str, Any]:
    """A command that works: 10 labelled rows in shards of 4."""
    data = write_corpus(tmp_path / "good.jsonl", toy_rows("sequence-classification", 10))
    task = "sequence-classification"
    return {"teacher": teachers[task], "task": task, "data": data, "out": tmp_path / "out"}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_refused(ended: Ended, code: int, *parts: str) -> None:
    for part in parts:
        assert part in ended.error, ended.error
    assert ended.code == code
    assert ended.error.endswith((".", "keep k classes, or all of them. See --help."))


def test_the_command_that_the_others_break_works(base: dict[str, Any], dump: Any) -> None:
    ended = dump(**base)
    assert (ended.code, ended.error) == (0, "")
    assert "3 of 3 shards written" in ended.said
    assert Dump(base["out"]).verify() == []
    again = dump(**base)
    assert again.code == 0
    assert "complete already" in again.said


# --- the corpus ------------------------------------------------------------------------------------------------------

BAD_FILES: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "an empty file": ("empty.jsonl", b"", ("empty.jsonl", "no rows of text")),
    "an empty text file": ("empty.txt", b"\n\n", ("empty.txt", "no rows of text")),
    "a table without rows": ("header.csv", b"text,label\n", ("header.csv", "no rows of text")),
    "a missing column": ("a.jsonl", b'{"body": "fox"}\n', ("a.jsonl", "no column 'text'", "'body'", "--text-column")),
    "no text": ("a.jsonl", b'{"text": "fox"}\n{"text": 7}\n', ("a.jsonl, line 2", "holds 7", "not text")),
    "null": ("a.jsonl", b'{"text": "fox"}\n\n{"text": null}\n', ("a.jsonl, line 3", "holds None", "not text")),
    "invalid UTF-8": ("a.txt", b"fox\ndog\nna\xefve\nfox\n", ("a.txt, line 3", "0xef", "not valid UTF-8")),
    "broken JSON": ("a.jsonl", b'{"text": "fox"}\n{"text": \n', ("a.jsonl, line 2", "not valid JSON")),
    "an unknown label": ("a.csv", b"text,label\nfox,positive\ndog,happy\n", ("a.csv, line 3", "'happy'", "neutral")),
    "too large a label": ("a.jsonl", b'{"text": "fox", "label": 3}\n', ("a.jsonl, line 1", "3", "0 to 2")),
    "a strange kind of file": ("a.docx", b"PK", ("a.docx", "unknown kind of file", ".parquet")),
    "no Parquet": ("a.parquet", b"PAR1 and then something else", ("a.parquet", "not a parquet file")),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_corpus_is_named_by_file_and_line(name: str, base: dict[str, Any], dump: Any, tmp_path: Path) -> None:
    file, content, parts = BAD_FILES[name]
    (tmp_path / file).write_bytes(content)
    assert_refused(dump(**base | {"data": tmp_path / file}), FAILED, *parts)
    assert not base["out"].exists()


def test_files_that_are_not_there(base: dict[str, Any], dump: Any, tmp_path: Path) -> None:
    assert_refused(dump(**base | {"data": tmp_path / "no.txt"}), FAILED, "no.txt", "there is no such file")
    assert_refused(dump(**base | {"data": tmp_path / "*.tsv"}), FAILED, "*.tsv", "no file matches")
    (tmp_path / "folder.txt").mkdir()
    assert_refused(dump(**base | {"data": tmp_path / "folder.txt"}), FAILED, "folder.txt", "this is a folder")
    assert not base["out"].exists()


def test_columns_that_are_not_there(base: dict[str, Any], dump: Any) -> None:
    assert_refused(dump(**base, pair_column="second"), FAILED, "good.jsonl", "'second'", "--pair-column")
    assert_refused(dump(**base, label_column="gold"), FAILED, "good.jsonl", "'gold'")
    assert not base["out"].exists()


def test_tags_that_do_not_fit_the_words(base: dict[str, Any], dump: Any, teachers: Any, tmp_path: Path) -> None:
    options = base | {"task": "token-classification", "teacher": teachers["token-classification"]}
    for content, parts in (
        ('{"tokens": ["fox", "dog"], "tags": ["O"]}', ("line 1", "one tag for each of the 2 words")),
        ('{"tokens": "fox dog", "tags": ["O", "O"]}', ("line 1", "list of words")),
        ('{"tokens": ["fox"], "tags": ["B-Y"]}', ("line 1", "'B-Y'", "B-X")),
    ):
        (tmp_path / "words.jsonl").write_text(content + "\n")
        assert_refused(dump(**options | {"data": tmp_path / "words.jsonl"}), FAILED, "words.jsonl", *parts)
    assert not base["out"].exists()


def test_a_long_context_is_refused_before_it_is_tokenized(
    base: dict[str, Any], dump: Any, make_teacher: Any, write_corpus: Any, tmp_path: Path
) -> None:
    data = write_corpus(tmp_path / "long.jsonl", [{"question": "which fox", "context": "the fox " * 200_000}])
    options = {"task": "question-answering", "teacher": make_teacher("question-answering"), "data": data}
    ended = dump(**base | options)
    assert_refused(ended, FAILED, "long.jsonl, line 1: the context has 1,600,000 characters", "at most 1,000,000")
    assert not base["out"].exists()


def test_a_row_of_ten_megabytes_is_cut_before_it_is_tokenized(
    base: dict[str, Any], dump: Any, write_corpus: Any, tmp_path: Path
) -> None:
    begun = time.monotonic()
    data = write_corpus(tmp_path / "long.jsonl", ["the quick fox jumps " * 500_000, "a dog"])
    assert "1 rows have the full --max-length" in dump(**base | {"data": data}).said
    assert time.monotonic() - begun < 10


def test_a_text_without_tokens_cannot_be_classified(
    base: dict[str, Any], dump: Any, make_teacher: Any, write_corpus: Any, tmp_path: Path
) -> None:
    """A byte-level tokenizer adds nothing to an empty text; the rows before it are kept in their shard."""
    teacher = make_teacher("sequence-classification", "llama")
    data = write_corpus(tmp_path / "gap.jsonl", ["fox"] * 5 + [""] + ["dog"] * 3)
    assert_refused(dump(**base | {"teacher": teacher, "data": data}), FAILED, "row 5 has no tokens", "drop empty texts")
    assert names(base["out"] / "shards") == ["00000.json", "00000.parquet"]


# --- the teacher -----------------------------------------------------------------------------------------------------


def test_a_teacher_that_is_not_there(base: dict[str, Any], dump: Any, tmp_path: Path) -> None:
    assert_refused(dump(**base | {"teacher": tmp_path / "no"}), FAILED, "there is no such folder")
    (tmp_path / "bare").mkdir()
    assert_refused(dump(**base | {"teacher": tmp_path / "bare"}), FAILED, "no configuration can be loaded")
    assert not base["out"].exists()


def test_a_teacher_whose_weights_are_cut_short(base: dict[str, Any], dump: Any, tmp_path: Path) -> None:
    teacher = shutil.copytree(base["teacher"], tmp_path / "teacher")
    weights = teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert_refused(
        dump(**base | {"teacher": teacher}), FAILED, "no model for AutoModelForSequenceClassification can be loaded"
    )
    weights.unlink()
    assert_refused(
        dump(**base | {"teacher": teacher}), FAILED, "no model for AutoModelForSequenceClassification can be loaded"
    )
    assert not base["out"].exists()


@pytest.mark.parametrize(
    ("has", "asked", "sentence"),
    [
        ("masked-lm", "sequence-classification", "BertForMaskedLM has no head for sequence-classification"),
        ("sequence-classification", "token-classification", "BertForSequenceClassification has no head for"),
        ("encoder", "masked-lm", "no weights for cls.predictions"),
    ],
)
def test_a_teacher_without_the_head(
    has: str, asked: str, sentence: str, base: dict[str, Any], dump: Any, teachers: dict[str, Path], write_corpus: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    # With labels: the data are not to blame for the generic label names that every configuration has.
    rows = [{"text": "the fox", "tokens": ["the", "fox"], "tags": ["O", "B-ANIMAL"], "label": "animals"}]
    data = write_corpus(tmp_path / "data.jsonl", rows)
    ended = dump(**base | {"task": asked, "teacher": teachers[has], "data": data})
    assert_refused(ended, FAILED, sentence, asked, "Fine-tune it first")
    assert not base["out"].exists()


def test_a_masked_lm_is_no_causal_one(base: dict[str, Any], dump: Any, teachers: dict[str, Path]) -> None:
    """transformers loads BERT as a causal language model without a murmur, and it sees what it should predict."""
    ended = dump(**base | {"task": "causal-lm", "teacher": teachers["masked-lm"]})
    assert_refused(ended, FAILED, "BertLMHeadModel", "sees the tokens that it should predict")
    assert not base["out"].exists()


def test_a_tokenizer_with_more_entries_than_the_model(base: dict[str, Any], dump: Any, make_teacher: Any) -> None:
    teacher = make_teacher("masked-lm", vocab_size=100)
    ended = dump(**base | {"task": "masked-lm", "teacher": teacher})
    assert_refused(ended, FAILED, "tokenizer has 1", "the model only 100", "belongs to another model")
    assert not base["out"].exists()


def spoil(teacher: Path, task: str, folder: Path, token: int, value: float) -> Path:
    """The teacher with one token's embedding set to `value`."""
    model = getattr(transformers, task_named(task).auto_class).from_pretrained(teacher)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = value
    shutil.copytree(teacher, folder)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("task", ["sequence-classification", "masked-lm", "token-classification", "encoder"])
def test_nan_names_its_row_and_keeps_finished_shards(
    task: str,
    base: dict[str, Any],
    dump: Any,
    make_teacher: Any,
    write_corpus: Any,
    tiny_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The row is in the second shard and neither first nor last of its batch. (And not in the sample.)"""
    monkeypatch.setattr("teacher_dump.annotate.calibrate", lambda teacher, draft, *sample: draft)
    token = tiny_tokenizer.convert_tokens_to_ids("café")
    teacher = spoil(make_teacher(task, tie_word_embeddings=False), task, tmp_path / "nan", token, torch.nan)
    texts = [
        "the fox",
        "a dog jumps",
        "fox",
        "of",
        "the lazy dog",
        "café the fox",
        "the",
        "a quick fox jumps over",
        "a",
    ]
    rows = [{"tokens": text.split()} if task == "token-classification" else {"text": text} for text in texts]
    data = write_corpus(tmp_path / "nan.jsonl", rows)
    hidden = "last" if task == "encoder" else "none"
    positions = "all" if task == "masked-lm" else None
    ended = dump(**base | {"task": task, "teacher": teacher, "data": data}, hidden=hidden, positions=positions)
    assert_refused(ended, FAILED, "row 5: NaN or infinity in the teacher's", "--dtype fp32")
    assert names(base["out"] / "shards") == ["00000.json", "00000.parquet"]


@pytest.mark.parametrize("value", [1e6, -1e6])
def test_hidden_states_beyond_float16_are_refused(
    value: float, base: dict[str, Any], dump: Any, make_teacher: Any, write_corpus: Any, tmp_path: Path,
    tiny_causal_tokenizer: Any,
) -> None:  # fmt: skip
    token = tiny_causal_tokenizer.encode("X")[0]
    teacher = spoil(make_teacher("causal-lm", "gpt2"), "causal-lm", tmp_path / "huge", token, value)
    data = write_corpus(tmp_path / "huge.jsonl", ["the fox", "fox X", "a dog"])
    ended = dump(**base | {"task": "causal-lm", "teacher": teacher, "data": data}, hidden="0")
    assert_refused(ended, FAILED, "row 1: NaN or infinity in the teacher's hidden.0")
    assert names(base["out"] / "shards") == []


# --- the options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "options", "parts"),
    [
        ("causal-lm", {"top_k": 321}, ("--top-k 321", "320 classes")),
        ("sequence-classification", {"top_k": 4}, ("--top-k 4", "3 classes")),
        ("sequence-classification", {"top_k": 0}, ("--top-k", "greater than or equal to 1")),
        ("sequence-classification", {"top_k": 2, "dense": True}, ("--top-k and --dense exclude each other",)),
        ("sequence-classification", {"max_length": 65}, ("--max-length 65", "at most 64")),
        ("sequence-classification", {"max_length": 0}, ("--max-length",)),
        ("sequence-classification", {"hidden": "3"}, ("--hidden 3", "0 (the embeddings) to 2")),
        ("sequence-classification", {"hidden": "first"}, ("--hidden 'first'", "none, last, all")),
        ("sequence-classification", {"positions": "all"}, ("'all'", "nothing to choose")),
        ("masked-lm", {"positions": "first-subtoken"}, ("'first-subtoken'", "masked, all")),
        ("sequence-classification", {"dtype": "fp8"}, ("--dtype 'fp8'", "bf16")),
        ("sequence-classification", {"device": "gpu"}, ("device 'gpu'", "cuda")),
        ("encoder", {"pooling": "none"}, ("encoder", "--hidden last")),
        ("encoder", {"hidden": "last", "top_k": 3}, ("encoder", "--top-k")),
        ("summarization", {}, ("'summarization'", "causal-lm", "encoder")),
        ("masked-lm", {"temperatures": "nan"}, ("--temperatures nan", "from 0.01 to 1000")),
        ("masked-lm", {"temperatures": "2,1e-300"}, ("--temperatures 1e-300", "from 0.01 to 1000")),
        ("masked-lm", {"temperatures": "1"}, ("--temperatures 1:", "other than 1")),
        ("masked-lm", {"temperatures": ","}, ("--temperatures ','", "such as 2,4")),
        ("masked-lm", {"preset": ""}, ("--preset ''", "tiny, compact")),
        ("masked-lm", {"relations": "9" * 5000}, ("--relations", "layers from 1 to 2")),
        ("masked-lm", {"batch_tokens": "9" * 5000}, ("--batch-tokens", "neither auto nor a number")),
        ("sequence-classification", {"nonsense": 1}, ("--nonsense",)),
        ("sequence-classification", {"limit": 0}, ("--limit",)),
    ],
    ids=lambda value: " ".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, dict) else None,
)
def test_a_wrong_call(
    task: str, options: dict[str, Any], parts: tuple[str, ...], base: dict[str, Any], dump: Any, teachers: Any
) -> None:
    teacher = teachers.get(task, base["teacher"])
    label = {"label_column": "none"} if task == "sequence-classification" else {}
    assert_refused(dump(**base | {"task": task, "teacher": teacher} | label | options), WRONG_CALL, *parts)
    assert not base["out"].exists()


def test_options_that_are_missing(base: dict[str, Any], dump: Any) -> None:
    for name in ("teacher", "task", "data", "out"):
        assert_refused(dump(**base | {name: None}), WRONG_CALL, f"--{name}")
    assert not base["out"].exists()


def test_no_cuda(base: dict[str, Any], dump: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_refused(dump(**base | {"device": "cuda:1"}), WRONG_CALL, "cuda", "no CUDA device is available")


def test_a_tokenizer_without_a_mask_token(base: dict[str, Any], dump: Any, make_teacher: Any, teachers: Any) -> None:
    ended = dump(**base | {"task": "masked-lm", "teacher": teachers["causal-lm"]})
    assert_refused(ended, WRONG_CALL, "mask token")


# --- the folder ------------------------------------------------------------------------------------------------------


def test_out_is_a_file(base: dict[str, Any], dump: Any) -> None:
    base["out"].write_text("mine")
    assert_refused(dump(**base), WRONG_CALL, "out: this is a file")
    assert base["out"].read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["thesis.tex", "README.md", "shards/mine.parquet", "tokenizer/mine.json", "checksums.json"]
)
def test_out_holds_other_files(name: str, base: dict[str, Any], dump: Any) -> None:
    (base["out"] / name).parent.mkdir(parents=True)
    (base["out"] / name).write_text("mine")
    before = names(base["out"])
    assert_refused(dump(**base), WRONG_CALL, "holds other files already", name.split("/")[0])
    assert names(base["out"]) == before
    assert (base["out"] / name).read_text() == "mine"


def test_out_is_no_name_of_a_folder(base: dict[str, Any], dump: Any, monkeypatch: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    os.symlink("nowhere", "dangling")
    os.symlink("circle", "circle")
    for name, parts in {
        "": ("name a folder",),
        " ": ("name a folder",),
        "dangling": ("--out dangling", "is a symbolic link to nowhere"),
        "dangling/below": ("--out dangling/below", "is a symbolic link to nowhere"),
        str(base["data"] / "below"): ("good.jsonl is a file",),
        "circle": ("--out circle", "is a symbolic link to nowhere"),
        "circle/below": ("--out circle/below", "is a symbolic link to nowhere"),
        "a" * 300: ("is too long",),
        "a/" + "é" * 128: ("is too long",),
        "a\nb": ("characters that can be printed",),
        "\x1b[31m": ("characters that can be printed",),
    }.items():
        assert_refused(dump(**base | {"out": name}), WRONG_CALL, "--out", *parts)
        assert names(tmp_path / "empty") == ["circle", "dangling"]


@pytest.mark.parametrize(
    ("task", "length", "pair", "least"),
    [
        ("sequence-classification", 2, None, 3),
        ("sequence-classification", 3, "text", 4),
        ("masked-lm", 2, None, 3),
        ("token-classification", 1, None, 3),
        ("encoder", 1, None, 3),
        ("causal-lm", 1, None, 2),
    ],
)
def test_no_room_for_a_token_of_the_text(
    task: str, length: int, pair: str | None, least: int, base: dict[str, Any], dump: Any, teachers: dict[str, Path]
) -> None:
    hidden = "last" if task == "encoder" else "none"
    options = base | {"task": task, "teacher": teachers[task], "max_length": length, "pair_column": pair}
    assert_refused(dump(**options, hidden=hidden), WRONG_CALL, f"--max-length {length}", f"use {least} or more")
    assert not base["out"].exists()


def test_out_is_read_only(base: dict[str, Any], dump: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so that the question is answered for it here."""
    allowed = os.access
    nearest = base["out"].parent
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != nearest and allowed(path, mode))
    assert_refused(dump(**base), WRONG_CALL, str(nearest), "is read-only")
    assert not base["out"].exists()


def test_out_is_another_dump(base: dict[str, Any], dump: Any) -> None:
    assert dump(**base).code == 0
    before = {name: (base["out"] / name).stat().st_mtime_ns for name in names(base["out"])}
    ended = dump(**base, top_k=2, hidden="1")
    assert_refused(ended, WRONG_CALL, "never mixes", "signals.distribution.codec", "signals.hidden.1")
    assert {name: (base["out"] / name).stat().st_mtime_ns for name in names(base["out"])} == before


def test_the_manifest_in_out_is_damaged(base: dict[str, Any], dump: Any) -> None:
    assert dump(**base).code == 0
    (base["out"] / "manifest.json").write_text("{")
    assert_refused(dump(**base), FAILED, "damaged manifest")


@contextmanager
def files_of_at_most(limit_bytes: int) -> Iterator[None]:
    """As on a full disk, writing beyond the limit fails (Python ignores the signal that comes with it)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_from_the_start(base: dict[str, Any], dump: Any) -> None:
    with files_of_at_most(100):
        ended = dump(**base)
    assert_refused(ended, FAILED, "cannot be written", "too large", "make room")
    assert not base["out"].exists()


def test_a_disk_that_fills_up(base: dict[str, Any], dump: Any, write_corpus: Any, tmp_path: Path, texts: Any) -> None:
    """The second shard holds long texts and does not fit; the first stays, and the same command finishes the rest."""
    data = write_corpus(tmp_path / "growing.jsonl", ["fox"] * 4 + [" ".join(texts[:9])[:300]] * 4 + ["dog"])
    options = base | {"data": data, "hidden": "all"}
    with files_of_at_most(20_000):
        ended = dump(**options)
    assert_refused(ended, FAILED, "00001.parquet: cannot be written", "File too large", "Finished shards are kept")
    assert names(base["out"] / "shards") == ["00000.json", "00000.parquet"]
    assert "2 of 3 shards written" in dump(**options).said
    assert Dump(base["out"]).verify() == []


# --- interruptions and --debug ---------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_is_finished(base: dict[str, Any], dump: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write = annotate_module.write_shard

    def interrupted(out: Path, index: int, *rest: Any) -> Any:
        if index == 1:
            raise KeyboardInterrupt
        return write(out, index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(annotate_module, "write_shard", interrupted)
        assert_refused(dump(**base), INTERRUPTED, "interrupted", "continues from there")
    assert names(base["out"] / "shards") == ["00000.json", "00000.parquet"]
    assert "2 of 3 shards written" in dump(**base).said


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, base: dict[str, Any]) -> None:
    options = [f"--{name}={value}" for name, value in base.items()]
    monkeypatch.setattr(sys, "argv", ["dump", *options, "--max-length", "99", "--debug"])
    with pytest.raises(Exception, match="--max-length 99") as raised:
        run(cli.app)
    assert type(raised.value).__name__ == "UsageError"


def test_a_dry_run_writes_nothing(base: dict[str, Any], dump: Any) -> None:
    ended = dump(**base, dry_run=True)
    assert (ended.code, ended.error) == (0, "")
    assert "nothing was written" in ended.said
    assert re.search(r"distribution +\d", ended.said)
    assert not base["out"].exists()
