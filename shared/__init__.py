"""What the two halves of Lectern agree on: the dump format, its codecs, and how a row of text becomes token ids."""

from typing import TYPE_CHECKING, Any

from shared.errors import CorpusError, DumpError, LecternError, RecipeError, TeacherError, UsageError

if TYPE_CHECKING:
    from shared.dump.dump import Dump

__all__ = ["CorpusError", "Dump", "DumpError", "LecternError", "RecipeError", "TeacherError", "UsageError"]


def __getattr__(name: str) -> Any:
    """`Dump` is imported on first use: it brings torch, and a command line's --help should not wait for that."""
    if name != "Dump":
        raise AttributeError(f"module 'shared' has no attribute {name!r}")
    from shared.dump.dump import Dump

    return Dump
