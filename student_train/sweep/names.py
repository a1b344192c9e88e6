"""What runs of a sweep are called, and how keys and values of recipes are written on a command line."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

# With the key before it, a name of three or four of them is still one that a person reads and a file system takes.
LONGEST_VALUE = 40


def toml(value: Any) -> str:
    """A value as TOML on one line, as `--set key=value` reads it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(entry) for entry in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else str(value)


def override(key: str, value: Any) -> str:
    """`key=value`, as `distill run --set` takes it."""
    return f"{key}={toml(value)}"


def flat(content: Any, key: str = "") -> dict[str, Any]:
    """Nested tables and lists as one table, whose dotted keys are those of `--set`.

    >>> flat({"loss": [{"kind": "kl"}]})
    {'loss.0.kind': 'kl'}
    """
    if isinstance(content, dict):
        entries = [(str(name), entry) for name, entry in content.items()]
    elif isinstance(content, list):
        entries = [(str(index), entry) for index, entry in enumerate(content)]
    else:
        return {key: content}
    flattened: dict[str, Any] = {}
    for name, entry in entries:
        flattened |= flat(entry, f"{key}.{name}" if key else name)
    return flattened


def name_of(variant: str | None, point: Mapping[str, Any], keys: Collection[str]) -> str:
    """The name of a run by its variant and its values, which is all that it depends on: more values of a key, or more
    runs, change no name. `keys` are those of the whole grid; where their last parts tell them apart, these will do.

    >>> name_of("soft", {"student.hidden_size": 64, "training.seed": 0}, ["student.hidden_size", "training.seed"])
    'soft_hidden_size=64_seed=0'
    """
    parts = [f"{_short(key, keys)}={_plain(value)}" for key, value in point.items()]
    return "_".join([*([variant] if variant is not None else []), *parts])


def _short(key: str, keys: Collection[str]) -> str:
    last = key.rpartition(".")[2]
    return key if sum(other.rpartition(".")[2] == last for other in keys) > 1 else last


def _plain(value: Any) -> str:
    """Letters, digits and a few signs that no shell or file system minds. What had to be cut ends in a checksum; of a
    path its last part will do."""
    text = value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else toml(value)
    plain = re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.")
    if len(plain) <= LONGEST_VALUE:
        return plain
    return f"{plain[: LONGEST_VALUE - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
