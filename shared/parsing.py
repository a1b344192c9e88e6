"""Parse JSON and TOML that others have written: whatever is wrong with it becomes one exception with a sentence.

The parsers of the standard library raise exceptions of several kinds for it, also where a text nests too deeply or
holds an integer of thousands of digits.
"""

import json
import sys
import tomllib
from typing import Any


class NotParsed(ValueError):
    """A text that cannot be parsed.

    Attributes:
        reason: what is wrong, without its line.
        line: the line of the text, counted from 1; None if it is not known.
    """

    def __init__(self, reason: str, line: int | None) -> None:
        self.reason, self.line = reason, line
        super().__init__(reason if line is None else f"line {line}: {reason}")


def parse_json(content: str | bytes) -> Any:
    """Return the value of a JSON text, which may begin with a byte order mark. Raises NotParsed."""
    text = decode(content)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise NotParsed(f"not valid JSON ({error.msg})", error.lineno) from None
    except (RecursionError, ValueError) as error:
        raise NotParsed(f"not valid JSON ({_limit(error)})", None) from None


def parse_toml(content: str | bytes) -> dict[str, Any]:
    """Return the tables of a TOML text, which may begin with a byte order mark. Raises NotParsed."""
    text = decode(content).replace("\r\n", "\n")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise NotParsed(f"not valid TOML ({error})", None) from None
    except (RecursionError, ValueError) as error:
        raise NotParsed(f"not valid TOML ({_limit(error)})", None) from None


def decode(content: str | bytes, first_line: int = 1) -> str:
    """Return a text of UTF-8, which begins at a line of its file, without a byte order mark. Raises NotParsed."""
    if isinstance(content, str):
        return content.removeprefix("\ufeff")
    try:
        return content.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise NotParsed(
            f"byte {content[error.start]:#04x} is not valid UTF-8; convert the file first (for instance with iconv)",
            first_line + content.count(b"\n", 0, error.start),
        ) from None


def _limit(error: Exception) -> str:
    """Return in words which limit of the parser a text has reached."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if "integer string conversion" in str(error):
        return f"an integer has more than {sys.get_int_max_str_digits():,} digits"
    return str(error).rstrip(".")
