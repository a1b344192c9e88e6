"""Meeting a budget of bytes by a rule's threshold."""

from collections.abc import Callable

from shared.dump.codecs.selection.rule import Rule

TOLERANCE = 0.02
STEPS = 8
THRESHOLDS = (1e-5, 0.5)
# Where the search begins, and what a rule that has not met a budget yet may be asked for with.
FIRST_THRESHOLD = 0.03


def met_by(rule: Rule, budget: float, bytes_of: Callable[[Rule], float]) -> Rule:
    """The rule with the threshold at which `bytes_of` it is about `budget`, by bisection in the threshold's logarithm.

    Raises:
        ValueError: where no threshold comes near it, or the rule has none.
    """
    least, most = THRESHOLDS
    found, nearest = rule, float("inf")
    threshold = FIRST_THRESHOLD
    for _ in range(STEPS):
        candidate = rule.at_threshold(float(f"{threshold:.3g}"))
        if candidate is None:
            raise ValueError(f"there is no threshold to choose for {rule.describe()}")
        size = bytes_of(candidate)
        if abs(size - budget) < nearest:
            found, nearest = candidate, abs(size - budget)
        if nearest <= TOLERANCE * budget:
            return found
        least, most = (threshold, most) if size > budget else (least, threshold)
        threshold = (least * most) ** 0.5
    if nearest > 0.25 * budget:
        raise ValueError(
            f"thresholds from {THRESHOLDS[0]:g} to {THRESHOLDS[1]:g} come no nearer than {nearest:.1f} bytes to it"
        )
    return found
