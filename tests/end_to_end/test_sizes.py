"""`.ci/sizes.py` names what has outgrown its place."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / ".ci" / "sizes.py"


def too_large(root: Path) -> list[str]:
    spec = importlib.util.spec_from_file_location("sizes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return list(script.too_large(root))


def write(file: Path, lines: int = 1) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("pass\n" * lines)


def test_long_files_and_full_folders_are_named(tmp_path: Path) -> None:
    for number in range(14):
        write(tmp_path / f"shared/dump/file{number}.py", 300)
    write(tmp_path / "student_train/students/bilstm.py", 301)
    write(tmp_path / "tests/test_long.py", 301)
    assert too_large(tmp_path) == []
    write(tmp_path / "shared/dump/one_more.py")
    write(tmp_path / "teacher_dump/engines/bilstm.py", 301)
    assert too_large(tmp_path) == [
        "shared/dump: 15 modules, and 14 are the most; give some a folder.",
        "teacher_dump/engines/bilstm.py: 301 lines, and 300 are the most; give its second idea a file.",
    ]
