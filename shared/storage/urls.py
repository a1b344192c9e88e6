"""Which file system of fsspec a URL belongs to, and failures of such file systems."""

import errno
import functools
from typing import Any

from shared.errors import UsageError


def filesystem_of(url: str) -> tuple[Any, str]:
    """Return (the file system, the path in it) of a URL or a path of this machine.

    Raises:
        UsageError: for an unknown protocol, or one that needs a package that is not installed.
    """
    # Imported here, because it takes a tenth of a second that --help should not wait for.
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        filesystem, path = url_to_fs(url)
    except ImportError as error:
        reason = str(error).rstrip(".")
        raise UsageError(
            f"{url}: {protocol}:// needs a package that is not installed ({reason}); install it."
        ) from None
    except OSError:
        raise
    except Exception as error:  # each file system checks its URLs in its own way
        raise UsageError(
            f"{url}: this is no URL that fsspec can open ({_reason(error)}); write a path, or a URL such as "
            "s3://bucket/folder, file:///folder or memory://folder."
        ) from None
    return filesystem, path


def is_local(filesystem: Any) -> bool:
    """Whether a file system is that of this machine."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(filesystem, LocalFileSystem)


class Guarded:
    """A file system whose methods raise OSError alone, with the URL as the file's name, whatever its package raises."""

    def __init__(self, filesystem: Any, url: str) -> None:
        self._filesystem, self._url = filesystem, url

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what Python itself asks for, while this is unpickled
            raise AttributeError(name)
        method = getattr(self._filesystem, name)

        @functools.wraps(method)
        def guarded(*arguments: Any, **options: Any) -> Any:
            try:
                return method(*arguments, **options)
            except OSError:
                raise
            except Exception as error:
                raise OSError(errno.EIO, f"{type(error).__name__}: {_reason(error)}", self._url) from error

        return guarded


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
