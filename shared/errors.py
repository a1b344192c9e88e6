"""Foreseeable errors, as a few exception types that the command lines turn into one paragraph and an exit code.

A message is one short paragraph: what is wrong, where (file, row, key), the bad value, and how to fix it.
"""


class LecternError(Exception):
    """A foreseeable failure of the work; the command line ends with exit code 1."""

    exit_code = 1


class UsageError(LecternError):
    """A wrong call: an option or a combination of options that cannot work; ends with exit code 2."""

    exit_code = 2


class CorpusError(LecternError):
    """Input text that cannot be read as rows: a missing file or column, a bad value, invalid UTF-8."""


class TeacherError(LecternError):
    """A teacher that cannot do what is requested: no suitable head, another vocabulary, NaN in its logits."""


class DumpError(LecternError):
    """A dump that is damaged, incomplete, of another format version, or unsuitable for the student."""


class TrainingError(LecternError):
    """Training that cannot go on: a loss that is NaN, a checkpoint that cannot be written."""


class RecipeError(LecternError):
    """A recipe that cannot be run: an unknown key, a bad value, a signal that the dump lacks."""

    exit_code = 2
