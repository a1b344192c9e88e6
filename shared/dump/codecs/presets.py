"""Named trades of bytes for information, for large vocabularies.

Measured by `just bench-codec` and `python benchmarks/selection.py`; the README shows both.
"""

from shared.dump.codecs.selection import Selection, Threshold

DEFAULT_PRESET = "default"

# name -> (rule, levels of the codes, in a few words)
PRESETS: dict[str, tuple[Selection, int, str]] = {
    "tiny": (Threshold(threshold=0.15), 64, "a handful of ids a position, the tail sampled"),
    "compact": (Threshold(threshold=0.07), 96, "about a dozen ids, the tail sampled"),
    "default": (Threshold(threshold=0.03), 130, "some 15 ids, the tail sampled"),
    "rich": (Threshold(threshold=0.01), 200, "some 30 ids, the tail sampled"),
    "near-lossless": (Threshold(threshold=2e-4, tail="mass"), 16_000, "every id above 1 in 5,000, the rest summed"),
}
