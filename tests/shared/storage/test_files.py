"""Files that are there whole or not at all, and folders of one process."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shared import UsageError
from shared.storage.files import only_one, write_atomically, write_text_atomically


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text_atomically(path, "before")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "before"


def test_a_file_has_its_name_only_once_it_is_whole(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("half")
        assert not (tmp_path / "file").exists()
        temporary.write_text("whole")

    write_atomically(tmp_path / "file", write)
    assert (tmp_path / "file").read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the power may fail and leave a name without its content; the name itself is flushed last."""
    steps: list[str] = []
    replace = os.replace

    def flush(descriptor: int) -> None:
        steps.append("name" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")

    def rename(*names: Path) -> None:
        steps.append("rename")
        replace(*names)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    write_text_atomically(tmp_path / "file", "whole")
    assert steps == ["content", "rename", "name"]


def test_a_folder_is_kept_to_one_process_until_that_ends(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from shared.storage.files import only_one\n"
        f"with only_one(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another run is at work in this folder"), only_one(tmp_path):
            pass
        other.kill()
    with only_one(tmp_path):
        assert list(tmp_path.iterdir()) == []
