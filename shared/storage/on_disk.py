"""Folders for libraries that can only read and write local paths, such as the tokenizers of transformers."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.storage.folder import Folder


@contextmanager
def on_disk(folder: Folder) -> Iterator[Path]:
    """Give a local path of a folder while the block runs: its own, or that of a temporary copy."""
    if folder.local is not None:
        yield folder.local
        return
    with tempfile.TemporaryDirectory() as copy:
        _copy(folder, Path(copy))
        yield Path(copy)


def save_into(folder: Folder, save: Callable[[Path], object]) -> None:
    """Let `save`, which writes files into a local path, write them into a folder."""
    if folder.local is not None:
        save(folder.local)
        return
    with tempfile.TemporaryDirectory() as made:
        save(Path(made))
        for path in sorted(Path(made).rglob("*")):
            if path.is_file():
                (folder / path.relative_to(made).as_posix()).write_bytes(path.read_bytes())


def _copy(folder: Folder, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in folder.names():
        if (folder / name).is_file():
            (target / name).write_bytes((folder / name).read_bytes())
        else:
            _copy(folder / name, target / name)
