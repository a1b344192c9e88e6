"""Dumps as earlier versions wrote them, made from today's: so that tests may continue a dump of one."""

import json
from pathlib import Path
from typing import Any

from tests.hand_edits import sign


def downgrade(folder: Path, version: int) -> dict[str, Any]:
    """Make a finished dump of today one of an earlier version, as far as that is in JSON; returns its manifest.

    Up to version 5 nothing says what belongs together. (What the footers of its shards say of that is left in.)
    """
    content = downgraded(json.loads((folder / "manifest.json").read_text()), version)
    (folder / "manifest.json").write_text(json.dumps(content, indent=2))
    if version >= 6:
        sign(folder)
        return content
    (folder / "checksums.json").unlink()
    for file in (folder / "shards").glob("*.json"):
        receipt = json.loads(file.read_text())
        file.write_text(json.dumps({key: value for key, value in receipt.items() if key not in ("seal", "checksum")}))
    return content


def downgraded(content: dict[str, Any], version: int) -> dict[str, Any]:
    """The JSON of today's manifest -> that of an earlier format version, with whatever that did not know left in."""
    older = {key: value for key, value in content.items() if key != "identity" or version >= 6}
    older["format_version"] = version
    if version < 7:
        older["embeddings"] = _word_embeddings(older.pop("tensor_files", {}).get("embeddings"))
    if version > 4:
        return older
    older["signals"] = [_bare_codec(signal) for signal in content["signals"]]
    if "layout" in older:
        older["recorded"] = older.pop("layout")
        older["gold"] = older["recorded"] if older.pop("labelled") else "none"
    return older


def _word_embeddings(file: dict[str, Any] | None) -> dict[str, Any] | None:
    if file is None:
        return None
    return {"rows": file["facts"]["rows"], "width": file["facts"]["width"], "constants_sha256": file["sha256"]}


def _bare_codec(signal: dict[str, Any]) -> dict[str, Any]:
    if signal["layer"] is None:
        return {"name": signal["site"], **signal["codec"]}
    return {"name": f"{signal['site']}.{signal['layer']}", "layer": signal["layer"], **signal["codec"]}
