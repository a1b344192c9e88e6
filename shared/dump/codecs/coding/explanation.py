"""How to read codes without Lectern, as sentences for the dataset card."""

from collections.abc import Iterator

from shared.dump.codecs.coding import power
from shared.dump.codecs.selection.rule import Rule


def codes_explained(
    rule: Rule, levels: int, floor: str | None, tails: dict[str, int], entropy: str | None
) -> Iterator[str]:
    """Yield sentences about the codes of kept ids and of the mass outside the exact ones.

    Args:
        rule: the rule that chose the ids.
        levels: the code of probability 1.
        floor: column of the position's smallest code, if there is one.
        tails: the code of mass 1, by its column.
        entropy: column of the entropy, if there is one.
    """
    if rule.most_times is not None:
        yield f"The code is how often the id was drawn, out of {rule.most_times} draws."
    else:
        above = f" plus the position's `{floor}`" if floor else " minus 1" if rule.samples else ""
        yield f"The probability of an id is `(c / {levels}) ** {1 / power.EXPONENT:g}`: c is the code{above}."
    if rule.sampled_weight is not None:
        yield f"Code 0 means that the id is sampled; its weight is {rule.sampled_weight:g}."
    for tail, most in tails.items():
        yield f"The mass outside the exact ids is `({tail} / {most}) ** {1 / power.EXPONENT:g}`."
    if entropy is not None:
        yield f"`{entropy}` is the entropy of the whole distribution, in nats."
