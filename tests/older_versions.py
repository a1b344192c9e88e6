"""Manifests as earlier versions wrote them, made from today's: so that tests may continue a dump of one."""

from typing import Any


def downgraded(content: dict[str, Any], version: int) -> dict[str, Any]:
    """The JSON of today's manifest -> that of an earlier format version, with whatever that did not know left in."""
    older = content | {"format_version": version, "signals": [_bare_codec(signal) for signal in content["signals"]]}
    if "layout" in older:
        older["recorded"] = older.pop("layout")
        older["gold"] = older["recorded"] if older.pop("labelled") else "none"
    return older


def _bare_codec(signal: dict[str, Any]) -> dict[str, Any]:
    if signal["layer"] is None:
        return {"name": signal["site"], **signal["codec"]}
    return {"name": f"{signal['site']}.{signal['layer']}", "layer": signal["layer"], **signal["codec"]}
