"""Checksums of the files that all shards need: the manifest, the tokenizer's files and the weights.

`DUMP/checksums.json` holds the SHA-256 of each. Every dump of format version 6 has one; `shards seal` writes it anew
after a deliberate edit, and also for a dump of an earlier version. The dataset card (README.md) is for people, and has
no checksum.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from shared.dump.versions import FIRST_IDENTIFIED
from shared.errors import DumpError
from shared.parsing import NotParsed, parse_json
from shared.storage import Folder, sha256_of

FILE_NAME = "checksums.json"
MANIFEST, TOKENIZER, WEIGHTS = "manifest.json", "tokenizer", "weights"
# Names of files and folders in a dump.
PARTS = (MANIFEST, TOKENIZER, WEIGHTS)


def checksums_of(folder: Folder, parts: tuple[str, ...] = PARTS) -> dict[str, str]:
    """Return the SHA-256 of each file of these parts of a dump, by its name in the dump: "tokenizer/tokenizer.json"."""
    return {name: sha256_of(folder / name) for part in parts for name in _files(folder, part)}


def write_checksums(folder: Folder, manifest: str) -> dict[str, str]:
    """Write the checksums of a manifest with this text and of all other files of a dump, and return them."""
    digests = {MANIFEST: hashlib.sha256(manifest.encode()).hexdigest(), **checksums_of(folder, (TOKENIZER, WEIGHTS))}
    (folder / FILE_NAME).write_text(json.dumps(digests, indent=2) + "\n")
    return digests


def read_checksums(folder: Folder) -> dict[str, str] | None:
    """Return the checksums of a dump by file name; None if there are none. Raises DumpError if they are damaged."""
    path = folder / FILE_NAME
    try:
        content: Any = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DumpError(f"{path}: cannot be read ({error.strerror or error}); restore it.") from None
    except NotParsed as error:
        raise DumpError(f"{path}: damaged ({error}); restore it, or {_signing(folder)}.") from None
    if not isinstance(content, dict) or not all(isinstance(digest, str) for digest in content.values()):
        raise DumpError(f"{path}: damaged (it is no table of checksums); restore it, or {_signing(folder)}.")
    return content


def changes(folder: Folder, signed: dict[str, str], parts: tuple[str, ...] = PARTS) -> dict[str, str]:
    """Return what has become of files of these parts since their checksums were written, by file name: "changed",
    "missing" or "added"."""
    expected = {name: digest for name, digest in signed.items() if name.split("/")[0] in parts}
    found = [name for part in parts for name in _files(folder, part)]
    unsigned = {name: "added" for name in found if name not in expected}
    changed = {name: "changed" for name in found if name in expected and sha256_of(folder / name) != expected[name]}
    return changed | unsigned | {name: "missing" for name in expected if name not in found}


def problems(folder: Folder, version: int, parts: tuple[str, ...]) -> list[str]:
    """Return one sentence for each file of these parts of a dump that is not as its checksum says."""
    try:
        signed = read_checksums(folder)
        if signed is None:
            missing = f"{folder / FILE_NAME}: missing, so that changes of other files would not be found"
            return [f"{missing}; restore it, or {_signing(folder)}."] if version >= FIRST_IDENTIFIED else []
        found = changes(folder, signed, parts)
    except DumpError as error:
        return [str(error)]
    except OSError as error:
        return [f"{error.filename or folder}: cannot be read ({error.strerror or error}); restore it."]
    sentences = {
        "changed": "not as it was written (its SHA-256 differs from that in checksums.json); restore it",
        "missing": "missing; restore it",
        "added": "not one of the dump's files (checksums.json does not name it); remove it",
    }
    return [
        f"{folder / name}: {sentences[what]}, or, if this was done on purpose, {_signing(folder)}."
        for name, what in found.items()
    ]


def check(folder: Folder, version: int, parts: tuple[str, ...]) -> None:
    """Check that files are as their checksums say. Raises DumpError with the first one that is not."""
    for problem in problems(folder, version, parts):
        raise DumpError(problem)


def _signing(folder: Folder) -> str:
    return f"sign the files as they are now with `shards seal {folder}`"


def _files(folder: Folder, name: str) -> Iterator[str]:
    """Yield the names of a file, or of all files in a folder; file managers' hidden files are left out."""
    if (folder / name).is_file():
        yield name
        return
    for inner in (folder / name).names():
        if not inner.startswith("."):
            yield from _files(folder, f"{name}/{inner}")
