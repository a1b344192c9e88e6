"""Files of a known size that are read at any place, and one of them: a file at a URL, read in ranges of bytes."""

import io
from io import RawIOBase
from typing import Any


class SizedFile(RawIOBase):
    """What random access needs besides `read`: a place in a file of `size` bytes."""

    def __init__(self, size: int) -> None:
        self._size, self._at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at


class RangeFile(SizedFile):
    """A file of an fsspec file system, opened for reading; each `read` fetches only the requested bytes.

    fsspec's own file objects read ahead in large blocks, which footers and single columns do not need. Those of the
    memory file system share one position between all users of a file, which is not safe with threads.

    Args:
        filesystem: file system of fsspec.
        path: path in the file system.
        size: size of the file in bytes.
    """

    def __init__(self, filesystem: Any, path: str, size: int) -> None:
        super().__init__(size)
        self._filesystem, self._path = filesystem, path

    def readinto(self, buffer: Any) -> int:
        part = self._fetched(len(buffer))
        buffer[: len(part)] = part
        return len(part)

    def read(self, size: int | None = -1) -> bytes:
        return self._fetched(self._size if size is None or size < 0 else size)

    def readall(self) -> bytes:
        return self.read()

    def _fetched(self, size: int) -> bytes:
        end = min(self._at + size, self._size)
        if end <= self._at:
            return b""
        part: bytes = self._filesystem.cat_file(self._path, start=self._at, end=end)
        self._at += len(part)
        return part
