"""Foreign text cannot change a terminal."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.printable import on_one_line, print_safely, printable
from tests.hand_edits import edit_manifest

GOLDEN = Path(__file__).parents[1] / "golden"
EVIL = "neg\x1b[2J\x1b]0;title\x07\r\x9b31m\u202eative\nrows  1"


def test_control_characters_and_overrides_of_direction_are_shown_as_escapes() -> None:
    assert printable(EVIL) == r"neg\x1b[2J\x1b]0;title\x07\x0d\x9b31m\u202eative" + "\nrows  1"
    assert on_one_line("a\nb\tc") == r"a\nb\tc"
    assert printable("\ud800") == r"\ud800"
    assert printable("naïve 漢字 🙂 שלום") == "naïve 漢字 🙂 שלום"


def test_bars_may_move_their_cursor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    print_safely()
    print("\ra bar \x1b[31m", end="", file=sys.stderr)
    print("\x1b[A", end="", file=sys.stderr)
    print("\ra line\x1b[A")
    printed = capsys.readouterr()
    assert printed.err == "\ra bar \\x1b[31m\x1b[A"
    assert printed.out == "\\x0da line\\x1b[A\n"


@pytest.mark.parametrize("command", ["info", "head", "stats", "verify", "seal"])
def test_what_shards_prints_about_a_strangers_dump_is_text(command: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "first-dense", tmp_path / "dump\x1b[2J"))
    teacher = json.loads((folder / "manifest.json").read_text())["teacher"]
    names = [f"{EVIL}{number}" for number in range(3)]
    edit_manifest(folder, label_names=names, task="task\x1b[2J", teacher=teacher | {"name": "teacher\x9b2J"})
    tokenizer = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    first = next(iter(content["model"]["vocab"]))
    content["model"]["vocab"]["\x1b[2J"] = content["model"]["vocab"].pop(first)
    tokenizer.write_text(json.dumps(content))
    edit_manifest(folder)
    call = [sys.executable, "-m", "shared.dump.cli", command, str(folder)]
    done = subprocess.run(call, capture_output=True, timeout=60, check=False)
    printed = (done.stdout + done.stderr).decode()
    assert printed
    assert "Traceback" not in printed
    assert not set(printed) & {"\x1b", "\x9b", "\x07", "\r", "\u202e"}
    assert "\nrows  1" not in printed
