"""Which column gold labels come from, as a user names it."""

import subprocess
import sys

import pytest

from shared.text.columns import gold_column


@pytest.mark.parametrize(("named", "required", "found"), [
    (None, None, ("label", False)),
    ("none", None, (None, False)),
    ("stars", None, ("stars", True)),
    ("label", None, ("label", True)),
    (None, False, ("label", False)),
    ("stars", False, ("stars", False)),
    (None, True, ("label", True)),
    ("stars", True, ("stars", True)),
])  # fmt: skip
def test_a_named_column_must_be_there_and_the_usual_one_may_be(
    named: str | None, required: bool | None, found: tuple[str | None, bool]
) -> None:
    assert gold_column(named, "label", required) == found


def test_names_of_columns_load_neither_torch_nor_arrow() -> None:
    check = "import sys, shared.text.columns; sys.exit(any(name in sys.modules for name in ('torch', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
