"""Decide which process makes which shard when several fill one dump.

In a local folder (`Claims`), each shard stands for one byte of the file `DUMP/.claims`, which stays empty: the process
that holds the lock on this byte is making the shard. The locks are those of the operating system, and work across
machines if the file system supports it (NFS, Lustre, GPFS). The system releases the locks of a process that ends or is
killed, so its shard is free for the others and nothing has to be cleaned up.

In a remote location (`Shares`), such as an object store, nothing can be locked: the processes divide the shards by the
rank and the number of processes that their launcher sets.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from shared.dump.manifest import FILE_NAME
from shared.errors import DumpError
from shared.storage import Folder
from teacher_dump.workers import Worker, worker

CLAIMS = ".claims"
_TAKEN = (errno.EACCES, errno.EAGAIN)
# Long enough for the first of the processes that were started together to begin the dump.
PATIENCE_SECONDS = 1800.0
SECONDS_BETWEEN_LOOKS = 0.5
# Byte 0 stands for the folder itself, byte n + 1 for shard n.
_FOLDER = 0


class Claims:
    """The claims of this process in an existing folder of a dump. A context manager.

    Attributes:
        takers: the number of processes that share the shards of `mine`.

    Raises:
        DumpError: if the file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / CLAIMS
        self.takers = worker().count
        self.held: set[int] = set()

    def __enter__(self) -> "Claims":
        self._open()
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._file)  # releases every lock

    def mine(self, missing: list[int]) -> list[int]:
        """The missing shards that this process may take: all of them."""
        return missing

    def claim(self, shard: int) -> bool:
        """Claim a shard. Returns False if a process, perhaps this one, has claimed it already."""
        if shard in self.held or not self._lock(shard + 1, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
        self.held.add(shard)
        return True

    def is_free(self, shard: int) -> bool:
        """Whether no process has claimed a shard at this moment."""
        if shard in self.held or not self._lock(shard + 1, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
        self._lock(shard + 1, fcntl.LOCK_UN)
        return True

    def release(self, shard: int) -> None:
        """Give up the claim on a shard, finished or not."""
        self.held.discard(shard)
        self._lock(shard + 1, fcntl.LOCK_UN)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock on the folder, which one process at a time has: for the files that all shards share."""
        self._lock(_FOLDER, fcntl.LOCK_EX)
        while not self._is_in_place():  # another process has removed the file while this one waited for the lock
            os.close(self._file)
            self._open()
            self._lock(_FOLDER, fcntl.LOCK_EX)
        try:
            yield
        finally:
            self._lock(_FOLDER, fcntl.LOCK_UN)

    def remove(self) -> None:
        """Remove the file. Call it within `alone`, when no shard is left to claim."""
        self.path.unlink(missing_ok=True)

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _lock(self, byte: int, how: int) -> bool:
        try:
            fcntl.lockf(self._file, how, 1, byte)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise DumpError(
                f"{self.path}: files cannot be locked here ({error.strerror}), but processes claim shards by locks; "
                "write the dump to another file system and copy it."
            ) from error
        return True


class Shares:
    """The counterpart of `Claims` for locations without locks: process r of n makes shards r, r + n, r + 2n, ...

    All processes wait until the first has begun the dump, and not for one another after that. If a process dies, its
    shards are made when the same command runs again.

    Processes without a common launcher (started by hand on two machines) may make the same shard. Each writes the whole
    shard. With the same hardware and options the bytes are the same, and only time is lost; otherwise `shards verify`
    finds a shard and a receipt that different processes have written.
    """

    takers = 1

    def __init__(self, folder: Folder, me: Worker) -> None:
        self._folder, self._me = folder, me

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def mine(self, missing: list[int]) -> list[int]:
        """The missing shards that this process makes."""
        return [shard for shard in missing if shard % self._me.count == self._me.rank]

    def claim(self, shard: int) -> bool:
        """Claim a shard. Returns False if it belongs to another process."""
        return bool(self.mine([shard]))

    def is_free(self, shard: int) -> bool:
        """True: whether another process is making a shard is not known here."""
        return True

    def release(self, shard: int) -> None:
        """Do nothing: there are no locks."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Enter the block at once in the first process, and in the others when the first has begun the dump.

        Raises:
            DumpError: if the first process has not begun the dump after half an hour.
        """
        begun = time.monotonic()
        while self._me.rank > 0 and not (self._folder / FILE_NAME).exists():
            if time.monotonic() - begun > PATIENCE_SECONDS:
                raise DumpError(
                    f"{self._folder}: the first of the processes has not begun the dump after {PATIENCE_SECONDS:.0f} "
                    "seconds; look at its output."
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)
        yield

    def remove(self) -> None:
        """Do nothing: there is no file of claims."""


def claims_in(folder: Folder) -> Claims | Shares:
    """What divides the shards of this folder among processes."""
    return Shares(folder, worker()) if folder.local is None else Claims(folder.local)
