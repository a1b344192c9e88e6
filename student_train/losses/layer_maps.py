"""Layer maps: which layer of the teacher each layer of the student imitates.

A student has the layers 1 to M and a teacher 1 to N; hidden state i is the output of layer i, and hidden state 0 that
of the embeddings, which belongs to no map. A recipe gives a map by name or as a list of M numbers of teacher layers,
in which 0 means that this layer of the student imitates none:

    "uniform"   layer i <- round(i N / M): every k-th layer, the top one included (TinyBERT, arXiv 1909.10351)
    "last"      the student's top layer <- the teacher's, the one below <- the one below, and so on
    [0, 5, 10]  as it says: the genome of a search over maps (arXiv 2012.06153)

N is the topmost layer that the dump has, so that a dump without the teacher's last layers is enough for a map that
ends below them.
"""

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator

from shared.dump.signals import MOST_LAYERS
from shared.errors import RecipeError
from shared.validation import shortened

NAMED_MAPS = ("uniform", "last")


class LayerPair(NamedTuple):
    """A layer of the student and the layer of the teacher that it is compared with.

    Attributes:
        student: numbered like hidden states, or from -1 downwards.
    """

    student: int
    teacher: int


def uniform_map(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """Return round(i N / M) for each of the student's layers i; halves are rounded up.

    >>> uniform_map(3, 12), uniform_map(4, 6)
    ((4, 8, 12), (2, 3, 5, 6))
    """
    return tuple(
        (2 * layer * teacher_layers + student_layers) // (2 * student_layers) for layer in range(1, student_layers + 1)
    )


def last_map(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """Return the teacher's topmost layers; where the student has more layers, its lower ones imitate none.

    >>> last_map(3, 12), last_map(3, 2)
    ((10, 11, 12), (0, 1, 2))
    """
    return tuple(max(0, teacher_layers - student_layers + layer) for layer in range(1, student_layers + 1))


def named_map(name: str, student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """Return the map with one of the names in NAMED_MAPS."""
    return {"uniform": uniform_map, "last": last_map}[name](student_layers, teacher_layers)


def pairs_of(layer_map: tuple[int, ...]) -> tuple[LayerPair, ...]:
    """Return the pairs of layers of an explicit map, lowest layer of the student first.

    >>> pairs_of((0, 5))
    (LayerPair(student=2, teacher=5),)
    """
    return tuple(LayerPair(layer, teacher) for layer, teacher in enumerate(layer_map, 1) if teacher)


def fitted_map(
    layer_map: str | tuple[int, ...], student_layers: int, stored: Sequence[int], where: str
) -> tuple[int, ...]:
    """Return the explicit map of a student with this number of layers.

    Args:
        stored: the teacher's layers that the dump has, lowest first, at least one.
        where: what the map belongs to, for messages.

    Raises:
        RecipeError: if an explicit map has more or fewer entries than the student has layers.
    """
    if isinstance(layer_map, str):
        return named_map(layer_map, student_layers, stored[-1])
    if len(layer_map) != student_layers:
        raise RecipeError(
            f"{where}: its map has {len(layer_map)} entries, but the student has {student_layers} layers; give one for "
            "each of them, lowest first, with 0 for a layer that imitates none."
        )
    return layer_map


def refuse_missing(wanted: Collection[int], stored: Collection[int], where: str, option: str) -> None:
    """Raise RecipeError if a dump has none of the teacher's layers, or lacks some of those that a map names.

    Args:
        stored: the layers that the dump has.
        where: the loss and the dump, for messages.
        option: the option of `dump` that records more of them.
    """
    missing = ", ".join(str(layer) for layer in sorted(set(wanted) - set(stored)))
    if missing or not stored:
        what = f"the teacher's layers {missing}" if missing else "the teacher's layers"
        have = ", ".join(map(str, sorted(stored))) or "none"
        raise RecipeError(f"{where} lacks {what} (it has {have}); dump again with {option}, or give another map.")


def _checked(value: Any) -> Any:
    """Check what a recipe gives as a map. Raises ValueError with a sentence."""
    if isinstance(value, str) and value in NAMED_MAPS:
        return value
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(_FORMS)
    for entry in value:
        if type(entry) is not int or not 0 <= entry <= MOST_LAYERS:
            raise ValueError(f"the entry {shortened(entry)} is not the number of a layer of the teacher, or 0 for none")
    if not any(value):
        raise ValueError(
            "it has zeros only, so no layer has a loss; name a layer of the teacher, or leave the loss out"
        )
    if len(value) > MOST_LAYERS:
        raise ValueError(f"it has {len(value):,} entries, and no student has so many layers")
    return tuple(value)


_FORMS = (
    'give "uniform", "last", or a list with the number of a layer of the teacher for each layer of the student '
    "(0 for none)"
)

LayerMap = Annotated[Literal["uniform", "last"] | tuple[int, ...], BeforeValidator(_checked)]
