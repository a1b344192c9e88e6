"""Presets for large vocabularies: how many bytes for how much information. `just bench-codec` prints the cost and the
loss of each.

If the tail is sampled, few levels are enough, because sampling adds far more variance than rounding.
"""

from shared.dump.codecs.selection.rules import Selection, Threshold

DEFAULT_PRESET = "default"

# name -> (rule, levels of the codes)
PRESETS: dict[str, tuple[Selection, int]] = {
    "tiny": (Threshold(threshold=0.15), 32),
    "compact": (Threshold(threshold=0.07), 48),
    "default": (Threshold(threshold=0.03), 64),
    "rich": (Threshold(threshold=0.01), 130),
    "near-lossless": (Threshold(threshold=2e-4, tail="mass"), 16_000),
}
