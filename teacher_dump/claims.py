"""Which process makes which shard, when several fill one dump.

In a folder of this machine (`Claims`) each shard is one byte of the file `DUMP/.claims`, which stays empty: whoever
holds the lock on that byte is at work on the shard. Locks are the system's, across machines too where the file system
has them (NFS, Lustre, GPFS): a process that ends, however it ends, holds none. So there is nothing to clean up and
nobody to ask, and a process that dies leaves its shard to the others.

Elsewhere (`Shares`), on an object store perhaps, nothing can be locked: the processes divide the shards by the rank and
the count that their launcher gives them.
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
# Processes that were started together are as far in well before that.
PATIENCE_SECONDS = 1800.0
SECONDS_BETWEEN_LOOKS = 0.5
# Byte 0 stands for the folder itself, byte n + 1 for shard n.
_FOLDER = 0


class Claims:
    """The claims of this process in a dump's folder, which must exist. Use it as a context manager.

    Attributes:
        takers: how many processes take from the shards that `mine` gives.

    Raises:
        DumpError: where the file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / CLAIMS
        self.takers = worker().count
        self.held: set[int] = set()

    def __enter__(self) -> "Claims":
        self._open()
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._file)  # lets go of every lock

    def mine(self, missing: list[int]) -> list[int]:
        """Those of the missing shards that this process may take: all of them."""
        return missing

    def claim(self, shard: int) -> bool:
        """Take a shard that nobody is at work on, this process included; False where somebody is."""
        if shard in self.held or not self._lock(shard + 1, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
        self.held.add(shard)
        return True

    def is_free(self, shard: int) -> bool:
        """Whether nobody is at work on a shard just now."""
        if shard in self.held or not self._lock(shard + 1, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
        self._lock(shard + 1, fcntl.LOCK_UN)
        return True

    def release(self, shard: int) -> None:
        """Let go of a shard, done or not."""
        self.held.discard(shard)
        self._lock(shard + 1, fcntl.LOCK_UN)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While it is open, no other process is in such a block: for the files that all shards share."""
        self._lock(_FOLDER, fcntl.LOCK_EX)
        while not self._is_in_place():  # somebody has removed the file while we waited for it
            os.close(self._file)
            self._open()
            self._lock(_FOLDER, fcntl.LOCK_EX)
        try:
            yield
        finally:
            self._lock(_FOLDER, fcntl.LOCK_UN)

    def remove(self) -> None:
        """Remove the file, within `alone`, when no shard is left to claim."""
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
                f"{self.path}: files cannot be locked here ({error.strerror}), and shards are claimed by locks; write "
                "the dump to another file system and copy it."
            ) from error
        return True


class Shares:
    """What `Claims` is, where there are no locks: process r of n makes shards r, r + n, r + 2n, ...

    No process waits for another, but all for the first, which begins the dump. A shard of a process that has died is
    made when the same command runs again. Processes that know nothing of each other (started by hand, on two machines)
    may make the same shard. Each writes it whole, so that nothing is lost but their time where the bytes are the same,
    as they are on the same hardware with the same options; elsewhere `shards verify` tells whether a shard and a
    receipt are of different processes.
    """

    takers = 1

    def __init__(self, folder: Folder, me: Worker) -> None:
        self._folder, self._me = folder, me

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def mine(self, missing: list[int]) -> list[int]:
        """Those of the missing shards that this process makes."""
        return [shard for shard in missing if shard % self._me.count == self._me.rank]

    def claim(self, shard: int) -> bool:
        """Take a shard; False where it is another process'."""
        return bool(self.mine([shard]))

    def is_free(self, shard: int) -> bool:
        """Whether nobody is at work on a shard just now, as far as anybody can know."""
        return True

    def release(self, shard: int) -> None:
        """Let go of a shard."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For the first process at once, for the others once that one has begun the dump.

        Raises:
            DumpError: when it has not for half an hour.
        """
        begun = time.monotonic()
        while self._me.rank > 0 and not (self._folder / FILE_NAME).exists():
            if time.monotonic() - begun > PATIENCE_SECONDS:
                raise DumpError(
                    f"{self._folder}: the first of the processes has not begun the dump for {PATIENCE_SECONDS:.0f} "
                    "seconds; see what it says."
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)
        yield

    def remove(self) -> None:
        """There is nothing to remove."""


def claims_in(folder: Folder) -> Claims | Shares:
    """How shards are divided in this folder."""
    return Shares(folder, worker()) if folder.local is None else Claims(folder.local)
