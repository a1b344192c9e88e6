"""The search for a rule's threshold that meets a budget of bytes."""

from collections.abc import Callable

from shared.dump.codecs.selection.rule import Rule

TOLERANCE = 0.02
STEPS = 8
THRESHOLDS = (1e-5, 0.5)
# Where the search begins; also the threshold of a rule before the search.
FIRST_THRESHOLD = 0.03


def met_by(rule: Rule, budget: float, bytes_of: Callable[[Rule], float]) -> Rule:
    """Return the rule with a threshold at which `bytes_of` the rule is about `budget`, by bisection in the threshold's
    logarithm.

    Raises:
        ValueError: if no threshold comes near the budget, or the rule has no threshold.
    """
    least, most = THRESHOLDS
    found, nearest = rule, float("inf")
    threshold = FIRST_THRESHOLD
    for _ in range(STEPS):
        candidate = rule.at_threshold(float(f"{threshold:.3g}"))
        if candidate is None:
            raise ValueError(f"the rule {rule.describe()} has no threshold to choose")
        size = bytes_of(candidate)
        if abs(size - budget) < nearest:
            found, nearest = candidate, abs(size - budget)
        if nearest <= TOLERANCE * budget:
            return found
        least, most = (threshold, most) if size > budget else (least, threshold)
        threshold = (least * most) ** 0.5
    if nearest > 0.25 * budget:
        raise ValueError(
            f"with thresholds from {THRESHOLDS[0]:g} to {THRESHOLDS[1]:g} the nearest size is {nearest:.1f} bytes off"
        )
    return found
