"""Whether a file or folder can be written is found out before the work, not after it."""

import os
from pathlib import Path

import pytest

from shared.errors import UsageError
from shared.storage.files import check_file, check_folder


def bad_paths(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    return {
        "in a file": tmp_path / "file" / "inside",
        "a link to nowhere": tmp_path / "nowhere",
        "a link in a circle": tmp_path / "circle",
        "in a circle": tmp_path / "circle" / "inside",
        "too long": tmp_path / ("x" * 300),
        "too long above": tmp_path / ("x" * 300) / "y",
        "a line break": tmp_path / "a\nb",
        "a NUL": tmp_path / "a\0b",
        "an escape": tmp_path / "a\x1b[31mb",
        "blank": Path(" "),
    }


KINDS = (
    "in a file",
    "a link to nowhere",
    "a link in a circle",
    "in a circle",
    "too long",
    "too long above",
    "a line break",
    "a NUL",
    "an escape",
    "blank",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_that_cannot_be_made_is_refused(kind: str, tmp_path: Path) -> None:
    path = bad_paths(tmp_path)[kind]
    with pytest.raises(UsageError) as raised:
        check_folder(path, "output =")
    assert str(raised.value).isprintable()
    if "link" not in kind:  # a file may be a link to a file that does not exist yet
        with pytest.raises(UsageError):
            check_file(path, "--json")


def test_what_can_be_written_is_accepted(tmp_path: Path) -> None:
    check_folder(tmp_path / "new" / "newer", "output =")
    check_folder(tmp_path, "output =")
    check_file(tmp_path / "scores.json", "--json")
    assert not list(tmp_path.iterdir())


def test_files_of_another_kind_and_in_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.png, \.pdf"):
        check_file(tmp_path / "plot.xyz", "--plot", (".png", ".pdf"))
    with pytest.raises(UsageError, match="there is no folder"):
        check_file(tmp_path / "missing" / "scores.json", "--json")
    with pytest.raises(UsageError, match="this is a folder"):
        check_file(tmp_path, "--json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_places_are_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="is read-only"):
        check_folder(tmp_path / "new", "output =")
    with pytest.raises(UsageError, match="is read-only"):
        check_file(tmp_path / "scores.json", "--json")
