"""Which process makes which shard, when several fill one dump.

Each shard is one byte of the file `DUMP/.claims`, which stays empty: whoever holds the lock on that byte is at work on
the shard. Locks are the system's, across machines too where the file system has them (NFS, Lustre, GPFS): a process
that ends, however it ends, holds none. So there is nothing to clean up and nobody to ask, and a process that dies
leaves its shard to the others.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import DumpError

CLAIMS = ".claims"
_TAKEN = (errno.EACCES, errno.EAGAIN)
# Byte 0 stands for the folder itself, byte n + 1 for shard n.
_FOLDER = 0


class Claims:
    """The claims of this process in a dump's folder, which must exist. Use it as a context manager.

    Raises:
        DumpError: where the file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / CLAIMS
        self.held: set[int] = set()

    def __enter__(self) -> "Claims":
        self._open()
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._file)  # lets go of every lock

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
