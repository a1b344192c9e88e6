"""Earlier format versions: their manifests as today's, so that nothing else has to know what they looked like."""

from typing import Any

# 1 had dense and top-k distributions and float16 vectors; 2 added codecs of a part of a vocabulary and of vectors; 3
# exact distributions, and next tokens at listed positions; 4 top-k in byte planes, a choice of compression, word
# embeddings, questions in windows, and the number of attention heads; 5 has signals as typed entries, and a layout
# with gold labels or without.
FORMAT_VERSION = 5
READABLE_VERSIONS = range(1, FORMAT_VERSION + 1)


def upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a manifest of any readable version -> what it is in today's, but for `format_version`, which still
    says what the files of the dump are. What is damaged stays so, for the manifest's own checks to find.
    """
    if content["format_version"] >= 5:
        return content
    new = dict(content)
    if isinstance(content.get("signals"), list):
        new["signals"] = [_typed(signal) for signal in content["signals"]]
    if "recorded" in new:
        new["layout"] = new.pop("recorded")
    if "gold" in new:
        # They were where the distributions were, or nowhere.
        new["labelled"] = new.pop("gold") != "none"
    return new


def _typed(signal: Any) -> Any:
    """Up to version 4 a signal was its codec, whose name said the site and the layer: "distribution", "hidden.6"."""
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
