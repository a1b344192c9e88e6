"""From a corpus to a scored student through a dump that is on no disk, with the command lines, all in this process."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from shared.cli import run as run_command
from shared.dump.cli import app as shards
from shared.storage import Folder
from student_train.cli import app as distill
from student_train.scoring import evaluate
from teacher_dump.cli import app as dump

RECIPE = """
output = "{output}"
dump = "{dump}"
[student]
kind = "transformer"
layers = 1
hidden_size = 16
heads = 2
embeddings = "svd"
[[loss]]
kind = "kl"
[[loss]]
kind = "hidden"
teacher_layer = 2
student_layer = -1
[eval]
data = ["reviews.jsonl"]
dump = "{dump}"
[training]
max_steps = 4
batch_size = 8
device = "cpu"
"""


@pytest.fixture
def call(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """call(app, "run", file) -> (exit code, standard output, standard error)."""

    def run(app: typer.Typer, *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run_command(app)
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_a_student_learns_the_same_from_a_dump_in_memory(
    in_memory: Folder,
    make_teacher: Any,
    write_corpus: Any,
    toy_rows: Any,
    tmp_path: Path,
    call: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "LATENCY_SECONDS", 0.0)
    teacher = make_teacher("sequence-classification")
    write_corpus(tmp_path / "reviews.jsonl", toy_rows("sequence-classification", 40))
    agreements = {}
    for name, place in {"local": "dump", "memory": str(in_memory)}.items():
        words = f"--teacher {teacher} --task sequence-classification --data reviews.jsonl --out {place} --embeddings"
        code, _, error = call(dump, *f"{words} --hidden 2 --max-length 64 --device cpu --shard-rows 16".split())
        assert code == 0, error
        Path(f"{name}.toml").write_text(RECIPE.format(output=name, dump=place))
        code, _, error = call(distill, "run", f"{name}.toml")
        assert code == 0, error
        code, _, error = call(
            distill, "eval", name, "--data", "reviews.jsonl", "--dump", place, "--json", f"{name}.json",
            "--max-length", 64, "--device", "cpu",
        )  # fmt: skip
        assert code == 0, error
        agreements[name] = json.loads(Path(f"{name}.json").read_text())["agreement"]
        assert json.loads((Path(name) / "recipe.json").read_text())["dump"] == place
    assert agreements["memory"] == agreements["local"] is not None
    same = {path.name for path in Path("local").iterdir()} - {"recipe.json", "metrics.json", "README.md", "stages.json"}
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= same
    for file in same:
        assert (Path("local") / file).read_bytes() == (Path("memory") / file).read_bytes(), file
    assert not Path("memory:").exists(), "a URL is no path"


def test_shards_looks_into_a_dump_anywhere(
    place: Folder, make_dump: Any, call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    here = make_dump("causal-lm", top_k=3, out=tmp_path / "here")
    make_dump("causal-lm", top_k=3, out=str(place))
    for words in ("info", "head -n 2", "stats"):
        command, *options = words.split()
        code, out, error = call(shards, command, place, *options)
        assert (code, error) == (0, "")
        if command != "info":  # the teachers differ in their folders' names
            assert out == call(shards, command, here, *options)[1]
    code, out, _ = call(shards, "verify", place)
    assert (code, out) == (0, f"{place}: 4 shards, 60 rows, every byte as it was written.\n")
    (place / "shards" / "00001.parquet").write_bytes(b"PAR1")
    code, _, error = call(shards, "verify", place)
    assert code == 1
    assert error.startswith(f"{place}/shards/00001.parquet: damaged shard (4 bytes")


@pytest.mark.parametrize("url", ["nowhere://bucket/dump", "s3:/bucket/dump"])
def test_a_url_that_cannot_be_opened_is_a_wrong_call(
    url: str, call: Callable[..., tuple[int, str, str]], tmp_path: Path, make_teacher: Any, write_corpus: Any
) -> None:
    Path(tmp_path / "recipe.toml").write_text(RECIPE.format(output=tmp_path / "student", dump=url))
    data = write_corpus(tmp_path / "data.jsonl", [{"text": "the fox", "label": "neutral"}])
    for app, words in (
        (shards, ["info", url]),
        (distill, ["run", tmp_path / "recipe.toml"]),
        (distill, ["eval", make_teacher("sequence-classification"), "--data", data, "--dump", url]),
    ):
        code, out, error = call(app, *words)
        assert (code, out) == (2, "")
        assert url in error
        assert "Traceback" not in error
    error = " ".join(call(distill, "run", tmp_path / "recipe.toml")[2].split())
    assert f"dump = '{url}': " in error
    assert not error.endswith("..")
