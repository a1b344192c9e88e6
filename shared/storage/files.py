"""Files of this machine that are there whole or not at all, and folders for one process at a time."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import UsageError

TEMPORARY = ".tmp"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk and give it its name.

    Whatever `write` raises (a full disk, say) leaves `path` as it was and no temporary file behind.
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
    """Keep a folder to this process while the block runs. The system lets go when a process ends, however it ends.

    Raises:
        UsageError: when another process is at work in it.
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
