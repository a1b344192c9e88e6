"""Which tags may follow each other, against seqeval's reading of whole sequences."""

import itertools

import pytest
from seqeval.scheme import BILOU, IOB2, IOBES, Entities

from student_train.chains.schemes import legality_of

IOB2_NAMES = ("O", "B-X", "I-X", "B-Y", "I-Y")
IOBES_NAMES = ("O", "B-X", "I-X", "E-X", "S-X", "S-Y")
BILOU_NAMES = ("O", "B-X", "I-X", "L-X", "U-X")


def is_legal(names: tuple[str, ...], path: tuple[int, ...]) -> bool:
    legality = legality_of(names)
    assert legality is not None
    inside = all(legality.between_CC[before, after] for before, after in itertools.pairwise(path))
    return bool(legality.first_C[path[0]] and inside and legality.last_C[path[-1]])


@pytest.mark.parametrize(
    ("names", "scheme"),
    [(IOB2_NAMES, IOB2), (IOBES_NAMES, IOBES), (BILOU_NAMES, BILOU)],
    ids=["IOB2", "IOBES", "BILOU"],
)
def test_a_path_is_legal_if_all_of_its_tags_are_in_entities_of_the_scheme(names: tuple[str, ...], scheme: type) -> None:
    """seqeval, which is strict, drops tags that break the scheme."""
    for length in (1, 2, 3):
        for path in itertools.product(range(len(names)), repeat=length):
            tags = [names[tag] for tag in path]
            entities = Entities([tags], scheme).entities[0]
            covered = sum(entity.end - entity.start for entity in entities)
            assert is_legal(names, path) == (covered == sum(tag != "O" for tag in tags)), tags


@pytest.mark.parametrize(
    "names",
    [
        ("NOUN", "VERB"),
        ("O", "I-X", "I-Y"),  # nothing begins
        ("B-X", "I-X"),  # no O
        ("O", "B-X", "I-X", "I-Y"),  # Y never begins, as in IOB1
        ("O", "B-X", "I-X", "S-X"),  # X never ends
        ("O", "B-X", "X"),
        ("O", "b-X", "i-X"),
        ("O",),
    ],
)
def test_other_names_follow_no_scheme(names: tuple[str, ...]) -> None:
    assert legality_of(names) is None


def test_names_without_a_type_follow_a_scheme_too() -> None:
    assert is_legal(("O", "B", "I"), (1, 2, 0))
    assert not is_legal(("O", "B", "I"), (0, 2))


def test_types_may_hold_dashes() -> None:
    assert is_legal(("O", "B-a-b", "I-a-b", "B-a-c", "I-a-c"), (1, 2))
    assert not is_legal(("O", "B-a-b", "I-a-b", "B-a-c", "I-a-c"), (1, 4))
