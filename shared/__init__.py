"""What the two halves of Lectern agree on: the dump format, its codecs, and how a row of text becomes token ids."""

from shared.dump.dump import Dump
from shared.errors import CorpusError, DumpError, LecternError, RecipeError, TeacherError, UsageError

__all__ = ["CorpusError", "Dump", "DumpError", "LecternError", "RecipeError", "TeacherError", "UsageError"]
