"""Foreign text on a terminal: whatever could move its cursor, change its state or reorder its line is shown as an
escape ("\\x1b").

Label names, tokens, texts, file names and names of teachers come from strangers, and are printed in many places. So the
command lines write to standard output and standard error through `print_safely`, and no place can forget it.
"""

import re
import sys
from typing import Any, TextIO

# C0 without newline and tab, DEL, C1; marks and overrides of direction; line separators; halves of surrogate pairs,
# which cannot even be encoded.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What bars write: cursor movements on their own, and carriage returns around the text of a bar.
_CURSOR_UP = re.compile(r"(\x1b\[A)+")


def printable(text: str) -> str:
    """Return a text with escapes in place of everything that is not text.

    Example:
        >>> printable("neg\\x1b[2Jative")
        'neg\\\\x1b[2Jative'
    """
    return _UNSAFE.sub(lambda found: _escape(found[0]), text)


def on_one_line(text: str) -> str:
    """Return a text with escapes in place of everything that is not text, newlines and tabs included."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def print_safely() -> None:
    """Let everything that this process prints from now on be printable."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Printable):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # for terminals without UTF-8
            setattr(sys, name, _Printable(stream, has_bars=name == "stderr"))


class _Printable:
    """A text stream that escapes what is written to it."""

    def __init__(self, stream: TextIO, has_bars: bool) -> None:
        self._stream, self._has_bars = stream, has_bars

    def write(self, text: str) -> int:
        if self._has_bars and _CURSOR_UP.fullmatch(text):
            self._stream.write(text)
        elif self._has_bars:
            inner = text.strip("\r")
            before, _, after = text.partition(inner) if inner else (text, "", "")
            self._stream.write(before + printable(inner) + after)
        else:
            self._stream.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
