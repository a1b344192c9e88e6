"""Local files that are written atomically, and folders that only one process uses at a time."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import UsageError

TEMPORARY = ".tmp"


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
