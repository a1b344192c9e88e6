"""The common part of the command lines: messages, exit codes, repeated options."""

import sys
from typing import Annotated, Any

import pytest
import typer

from shared.cli import run
from shared.errors import DumpError, UsageError

app = typer.Typer()
OTHER = DumpError("")


@app.command()
def command(
    fail: Annotated[str, typer.Option()] = "",
    data: Annotated[list[str] | None, typer.Option()] = None,
    size: Annotated[int, typer.Option()] = 1,
    name: Annotated[str, typer.Argument()] = "",
) -> None:
    errors: dict[str, Any] = {
        "work": DumpError("out/dump: the shard is damaged; dump again."),
        "call": UsageError("--size 3: too small."),
        "stop": KeyboardInterrupt(),
        "disk": OSError(28, "No space left on device", "out/file"),
        "bug": ZeroDivisionError("not foreseeable"),
        "other": OTHER,
    }
    if fail:
        raise errors[fail]
    typer.echo(f"{data} {size} {name}")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as ended:
        run(app, several=("--data",))
    return int(ended.value.code or 0)


@pytest.mark.parametrize(("fail", "code", "message"), [
    ("work", 1, "error: out/dump: the shard is damaged; dump again."),
    ("call", 2, "error: --size 3: too small."),
    ("stop", 130, "error: interrupted"),
    ("disk", 1, "error: out/file: No space left on device."),
])  # fmt: skip
def test_foreseeable_errors_are_one_paragraph_and_an_exit_code(
    fail: str, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert call(monkeypatch, "--fail", fail) == code
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert "Traceback" not in error


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["command", "--fail", "work", "--debug"])
    with pytest.raises(DumpError):
        run(app)


def test_bugs_are_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["command", "--fail", "bug"])
    with pytest.raises(ZeroDivisionError):
        run(app)


@pytest.mark.parametrize("wrong", [("--unknown",), ("--size", "many")])
def test_a_wrong_call_ends_with_2(
    wrong: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert call(monkeypatch, *wrong) == 2
    assert "error: " in capsys.readouterr().err


def test_an_option_may_take_several_values(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert call(monkeypatch, "--data", "a.jsonl", "b.jsonl", "--size", "2", "--data", "c.jsonl") == 0
    assert capsys.readouterr().out == "['a.jsonl', 'b.jsonl', 'c.jsonl'] 2 \n"


def test_help_does_not_wait_for_torch() -> None:
    import subprocess

    modules = "teacher_dump.cli, student_train.cli, shared.dump.cli"
    check = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(
    ("message", "printed"),
    [
        ("a: cannot be read (No such file..).", "a: cannot be read (No such file.)."),
        ("it ends twice..", "it ends twice."),
        ("two.. and more..", "two. and more."),
        ("left as it is... and ../here, in .. and /..", "left as it is... and ../here, in .. and /.."),
    ],
)
def test_a_sentence_ends_once(
    message: str, printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "OTHER", DumpError(message))
    assert call(monkeypatch, "--fail", "other") == 1
    assert capsys.readouterr().err == f"error: {printed}\n"


def test_a_path_longer_than_a_line_does_not_leave_the_first_line_empty(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "OTHER", DumpError(f"{'a' * 300}: not here."))
    assert call(monkeypatch, "--fail", "other") == 1
    assert capsys.readouterr().err == f"error: {'a' * 300}:\nnot here.\n"
