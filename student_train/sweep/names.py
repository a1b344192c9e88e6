"""Names of a sweep's runs, and keys and values of recipes as command-line overrides."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

# Characters of a value in a name; names of three or four keys and values stay readable and valid in file systems.
LONGEST_VALUE = 40


def toml(value: Any) -> str:
    """Return a value as TOML on one line, as `--set key=value` reads it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(entry) for entry in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else str(value)


def override(key: str, value: Any) -> str:
    """Return `key=value`, as `distill run --set` takes it."""
    return f"{key}={toml(value)}"


def name_of(variant: str | None, point: Mapping[str, Any], keys: Collection[str]) -> str:
    """Return the name of a run. It depends on its variant and values alone, so that adding runs changes no other name.

    `keys` are all keys of the grid; a key is shortened to its last part if no other key ends in the same part.

    >>> name_of("soft", {"student.hidden_size": 64, "training.seed": 0}, ["student.hidden_size", "training.seed"])
    'soft_hidden_size=64_seed=0'
    """
    parts = [f"{_short(key, keys)}={_plain(value)}" for key, value in point.items()]
    return "_".join([*([variant] if variant is not None else []), *parts])


def _short(key: str, keys: Collection[str]) -> str:
    last = key.rpartition(".")[2]
    return key if sum(other.rpartition(".")[2] == last for other in keys) > 1 else last


def _plain(value: Any) -> str:
    """Return a value with characters that are safe in shells and file systems; of a path, the last part alone.

    A value that is too long is cut and ends in a checksum.
    """
    text = value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else toml(value)
    plain = re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.")
    if len(plain) <= LONGEST_VALUE:
        return plain
    return f"{plain[: LONGEST_VALUE - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
