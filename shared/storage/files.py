"""Local files that are written atomically, and folders that only one process uses at a time."""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shared.errors import UsageError

TEMPORARY = ".tmp"
# Bytes of a file's name on the usual file systems.
LONGEST_NAME = 255


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk and rename it to `path`.

    If `write` raises an exception (for a full disk, for example), `path` is unchanged and no temporary file remains.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_text_atomically(path: Path, text: str) -> None:
    """`write_atomically` for a small text."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(text.encode())

    write_atomically(path, write)


def check_file(file: Path, option: str, endings: Sequence[str] = ()) -> None:
    """Check, before long work, that its result can be written to a file that `option` names.

    Raises:
        UsageError: if the file cannot be written, or its name does not end in one of `endings`.
    """
    _check_names(file, option)
    if endings and file.suffix.lower() not in endings:
        raise UsageError(f"{option} {file}: the name must end in {', '.join(endings)}.")
    if file.is_dir():
        raise UsageError(f"{option} {file}: this is a folder; name a file.")
    if not file.parent.is_dir():
        raise UsageError(f"{option} {file}: there is no folder {file.parent}; create it first.")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {file}: the folder {file.parent} is read-only; choose another one.")


def check_folder(folder: Path, option: str, name: str | None = None) -> None:
    """Check that a folder that `option` names exists or can be created, and can be written. Creates nothing.

    Args:
        name: the folder as the user wrote it, if not as a path.

    Raises:
        UsageError: if it cannot, for example because it is a file or a symbolic link to nowhere.
    """
    _check_names(folder, option)
    what = f"{option} {folder if name is None else name}"
    for path in (folder, *folder.absolute().parents):
        if path.is_symlink() and not path.exists():
            raise UsageError(f"{what}: {path} is a symbolic link to nowhere; remove it, or choose another.")
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UsageError(f"{what}: {'this' if nearest == folder else nearest} is a file; name a folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{what}: {nearest} is read-only; choose another folder.")


def _check_names(path: Path, option: str) -> None:
    if not str(path).strip() or any(not character.isprintable() for character in str(path)):
        raise UsageError(f"{option} {str(path)!r}: a path needs characters that can be printed; choose another name.")
    # A temporary name is longer.
    too_long = next((part for part in path.parts if len(part.encode()) > LONGEST_NAME - 2 * len(TEMPORARY)), None)
    if too_long is not None:
        raise UsageError(
            f"{option} {str(path)[:60]}...: the name {too_long[:40]}... is too long; choose a shorter one."
        )


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Lock a folder for this process while the block runs. The system releases the lock when the process ends or is
    killed.

    Raises:
        UsageError: if another process has locked it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{folder}: another run is at work in this folder; wait for it, or choose another one."
            ) from None
        yield
    finally:
        os.close(handle)
