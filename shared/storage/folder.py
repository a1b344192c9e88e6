"""`Folder`: the type of every dump path, whether it is on this machine or at a URL.

Local folders use the features of the file system: `rename`, `fsync` and locks. Other locations (an object store, or
this process's memory) are accessed through fsspec: a file is written with one PUT of all its bytes, which is atomic as
well, and read in ranges. Other code need not distinguish them, except where only a local path will do (`local`).
"""

import hashlib
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from io import BytesIO, FileIO, RawIOBase
from os import PathLike
from pathlib import Path
from typing import IO, Any

from shared.errors import UsageError
from shared.storage.files import write_atomically
from shared.storage.ranges import RangeFile
from shared.storage.urls import Guarded, filesystem_of, is_local

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")
# A URL that went through `pathlib`, which removes one of its slashes.
_HALF_A_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")


class Folder(ABC):
    """A folder or a file (like `pathlib.Path`), on this machine or at a URL. `str` gives it as the user wrote it.

    Attributes:
        local: its path on this machine; None for other locations.

    Example:
        >>> folder = Folder.of("memory://example")
        >>> (folder / "shards" / "00000.json").write_text("{}")
        >>> print(folder / "shards", (folder / "shards").names())
        memory://example/shards ['00000.json']
        >>> folder.remove_tree()
    """

    local: Path | None

    def __init__(self, text: str) -> None:
        self._text = text

    @staticmethod
    def of(place: "Place") -> "Folder":
        """Return the folder or file at a path or URL.

        Raises:
            UsageError: for a URL with an unknown protocol, or one that needs a package that is not installed.
        """
        if isinstance(place, Folder):
            return place
        text = str(place)
        if _HALF_A_URL.match(text):
            raise UsageError(f"{text}: a URL has two slashes after its protocol; write it as text (a Path loses one).")
        return _at_url(text) if _URL.match(text) else _Local(Path(text), str(Path(text)))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """As a field of a pydantic model, a folder is validated with `of` and serialized with `str`."""
        from pydantic_core import core_schema  # imported here because --help should not wait for it

        written = core_schema.to_string_ser_schema()
        return core_schema.no_info_plain_validator_function(_validated, serialization=written)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Folder({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(self._text)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._text.rstrip("/").rpartition("/")[2]

    @abstractmethod
    def __truediv__(self, name: str) -> "Folder":
        """Return the file or folder with a name in this folder; the name may have several parts."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether this is an existing file or folder."""

    @abstractmethod
    def is_file(self) -> bool:
        """Whether this is an existing file."""

    @abstractmethod
    def size(self) -> int:
        """Return the size of a file in bytes. Raises FileNotFoundError."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of the files and folders in this folder, sorted; empty if the folder does not exist."""

    @abstractmethod
    def make(self) -> None:
        """Create the folder and its parents."""

    @abstractmethod
    def read_bytes(self) -> bytes:
        """Return the content of a file. Raises FileNotFoundError."""

    @abstractmethod
    def open(self) -> RawIOBase:
        """Open a file for reading, with random access. Raises FileNotFoundError."""

    @abstractmethod
    def write(self, fill: Callable[[IO[bytes]], object]) -> None:
        """Write a file atomically: `fill` writes the content, and if it raises an exception, nothing is written."""

    @abstractmethod
    def remove(self) -> None:
        """Remove a file, if it exists."""

    @abstractmethod
    def remove_tree(self) -> None:
        """Remove a folder and everything in it, if it exists."""

    def read_text(self) -> str:
        """Return the content of a file as text, decoded from UTF-8. Raises FileNotFoundError."""
        return self.read_bytes().decode()

    def write_bytes(self, content: bytes) -> None:
        """Write a file with this content, atomically."""
        self.write(lambda file: file.write(content))

    def write_text(self, text: str) -> None:
        """Write a file with this text in UTF-8, atomically."""
        self.write_bytes(text.encode())


# The types that `Folder.of` accepts.
Place = str | PathLike[str] | Folder


def sha256_of(file: Folder) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with file.open() as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class _Local(Folder):
    """A folder or file on this machine."""

    local: Path

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(text)
        self.local = path

    def __truediv__(self, name: str) -> Folder:
        return _Local(self.local / name, _joined(str(self), name))

    def exists(self) -> bool:
        return self.local.exists()

    def is_file(self) -> bool:
        return self.local.is_file()

    def size(self) -> int:
        return self.local.stat().st_size

    def names(self) -> list[str]:
        try:
            return sorted(path.name for path in self.local.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def make(self) -> None:
        self.local.mkdir(parents=True, exist_ok=True)

    def read_bytes(self) -> bytes:
        return self.local.read_bytes()

    def open(self) -> RawIOBase:
        return FileIO(self.local)

    def write(self, fill: Callable[[IO[bytes]], object]) -> None:
        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                fill(file)

        write_atomically(self.local, write)

    def remove(self) -> None:
        self.local.unlink(missing_ok=True)

    def remove_tree(self) -> None:
        shutil.rmtree(self.local, ignore_errors=True)


class _Remote(Folder):
    """A folder or file at a URL.

    Args:
        filesystem: file system of fsspec.
        path: path in the file system.
        text: the URL as the user wrote it.
    """

    local = None

    def __init__(self, filesystem: Any, path: str, text: str) -> None:
        super().__init__(text)
        self._opened, self._path = Guarded(filesystem, text), path

    @property
    def _filesystem(self) -> Any:
        """The file system, without its cache of listings: other processes may have written since then."""
        self._opened.invalidate_cache(self._path)
        return self._opened

    def __truediv__(self, name: str) -> Folder:
        return _Remote(self._opened, _joined(self._path, name), _joined(str(self), name))

    def exists(self) -> bool:
        return bool(self._filesystem.exists(self._path))

    def is_file(self) -> bool:
        return bool(self._filesystem.isfile(self._path))

    def size(self) -> int:
        return int(self._filesystem.size(self._path))

    def names(self) -> list[str]:
        try:
            found = [path.rstrip("/") for path in self._filesystem.ls(self._path, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        # Some file systems list a file as if it were a folder that contains itself.
        return sorted(path.rpartition("/")[2] for path in found if path != self._path.rstrip("/"))

    def make(self) -> None:
        self._filesystem.makedirs(self._path, exist_ok=True)

    def read_bytes(self) -> bytes:
        return bytes(self._filesystem.cat_file(self._path))

    def open(self) -> RawIOBase:
        return RangeFile(self._opened, self._path, self.size())

    def write(self, fill: Callable[[IO[bytes]], object]) -> None:
        content = BytesIO()
        fill(content)
        self._filesystem.pipe_file(self._path, content.getvalue())

    def remove(self) -> None:
        if self.exists():
            self._filesystem.rm_file(self._path)

    def remove_tree(self) -> None:
        if self.exists():
            self._filesystem.rm(self._path, recursive=True)


def _at_url(url: str) -> Folder:
    filesystem, path = filesystem_of(url)
    return _Local(Path(path), url) if is_local(filesystem) else _Remote(filesystem, path, url)


def _joined(before: str, name: str) -> str:
    if before == ".":
        return name
    return f"{before}{name}" if before.endswith("/") else f"{before}/{name}"


def _validated(place: Any) -> Folder:
    if not isinstance(place, str | PathLike | Folder):
        raise ValueError("give a path or a URL, as text")
    try:
        return Folder.of(place)
    except UsageError as error:
        raise ValueError(str(error).removeprefix(f"{place}: ").removesuffix(".")) from None
