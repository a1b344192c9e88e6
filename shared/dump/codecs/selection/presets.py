"""Named trades of bytes for information, for large vocabularies. `just bench-codec` prints what each costs and loses.

Where the tail is sampled, few levels will do: what is sampled varies far more than rounding does.
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
