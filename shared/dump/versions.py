"""Upgrades of manifests from earlier format versions, so that no other code has to know these versions."""

from typing import Any

# Version 1 has dense and top-k distributions and float16 vectors. Version 2 added the codec `sparse` and more vector
# codecs; 3 exact distributions, and next tokens at listed positions; 4 top-k in byte planes, a choice of compression,
# word embeddings, questions in windows, and the number of attention heads. In version 5, signals are typed entries, and
# the manifest has the name of a layout and says whether there are gold labels. In version 6, the manifest has the
# dump's identity, each shard and receipt says where it belongs, and checksums.json holds the checksums of all other
# files. In version 7, the word embeddings are one of any number of tensor files.
FORMAT_VERSION = 7
# The first version with an identity and with checksums.
FIRST_IDENTIFIED = 6
READABLE_VERSIONS = range(1, FORMAT_VERSION + 1)


def upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of a manifest of any readable version as that of the current version.

    `format_version` is unchanged, because it describes the dump's files. Damaged parts are left for the manifest's own
    validation to find.
    """
    new = dict(content)
    if content["format_version"] < 7 and "embeddings" in new:
        embeddings = new.pop("embeddings")
        new["tensor_files"] = {} if embeddings is None else {"embeddings": _tensor_file(embeddings)}
    if content["format_version"] >= 5:
        return new
    if isinstance(content.get("signals"), list):
        new["signals"] = [_typed(signal) for signal in content["signals"]]
    if "recorded" in new:
        new["layout"] = new.pop("recorded")
    if "gold" in new:
        # Gold labels were at the same positions as distributions, or "none".
        new["labelled"] = new.pop("gold") != "none"
    return new


def _tensor_file(embeddings: Any) -> Any:
    """Return the entry of the file of word embeddings [rows, width] in float16, of versions 4 to 6."""
    try:
        others = dict(embeddings)
        rows, width, sha256 = (others.pop(key) for key in ("rows", "width", "constants_sha256"))
        facts = {"rows": rows, "width": width, "dtype": "fp16"}
        return {"tensors": 1, "bytes": 2 * rows * width, "sha256": sha256, "facts": facts, **others}
    except (TypeError, ValueError, KeyError):
        return embeddings


def _typed(signal: Any) -> Any:
    """Return the typed entry of a signal of versions 1 to 4.

    In these versions a signal was its codec, and its name had the site and the layer: "distribution", "hidden.6".
    """
    if not isinstance(signal, dict) or not isinstance(signal.get("name"), str):
        return signal
    site, _, layer = signal["name"].partition(".")
    codec = {key: value for key, value in signal.items() if key not in ("name", "layer")}
    return {
        "site": site,
        "layer": int(layer) if layer.isdecimal() else None,
        "per": "position" if site == "distribution" else "token",
        "codec": codec,
    }
