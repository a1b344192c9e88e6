"""The examples in docstrings run, and say what they are said to say."""

import doctest
import importlib
from pathlib import Path

import pytest

import lectern

ROOT = Path(lectern.__file__).parent
PLACES = (ROOT / "lectern.py", *(ROOT / name for name in ("shared", "teacher_dump", "student_train")))
FILES = sorted(file for place in PLACES for file in ([place] if place.is_file() else place.rglob("*.py")))
MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in FILES
    if ">>>" in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.usefixtures("workplace")
def test_the_examples_of_a_modules_docstrings_run(name: str) -> None:
    """From the first line to the last, in one folder: later examples may read what earlier ones wrote."""
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.REPORT_NDIFF)
    told: list[str] = []
    for example in sorted(found, key=lambda each: each.lineno or 0):
        runner.run(example, out=told.append)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(told)


def test_no_example_is_left_out() -> None:
    assert len(MODULES) > 15
    assert [str(file) for file in FILES if "doctest: +SKIP" in file.read_text(encoding="utf-8")] == []
