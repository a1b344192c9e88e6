"""--relations: which layers' queries, keys and values a dump has, and what its manifest says about them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shared.dump.manifest import read_manifest
from shared.errors import UsageError
from shared.storage import Folder
from teacher_dump.request import Request
from teacher_dump.signals import relation_layers


def asked(relations: str) -> Request:
    return Request("teacher", "encoder", ("data.txt",), Path("out"), relations=relations)


@pytest.mark.parametrize(
    ("relations", "layers"),
    [("none", []), ("last", [6]), ("all", [1, 2, 3, 4, 5, 6]), ("5", [5]), ("6,4", [4, 6]), ("5,5", [5])],
)
def test_layers_are_named_by_number_or_as_the_last_or_all(relations: str, layers: list[int]) -> None:
    assert relation_layers(asked(relations), 6) == layers


@pytest.mark.parametrize("relations", ["0", "7", "5,7", "5,", "", "-1", "first"])
def test_a_layer_that_the_teacher_lacks_is_refused_with_those_that_it_has(relations: str) -> None:
    with pytest.raises(UsageError, match=r"use none, last, all, or layers from 1 to 6 such as 5,6"):
        relation_layers(asked(relations), 6)


def test_the_manifest_tells_the_teachers_heads_where_queries_are_recorded(make_dump: Callable[..., Path]) -> None:
    manifest = read_manifest(Folder.of(make_dump("encoder", relations="all", hidden="none", pooling="none")))
    assert [signal.name for signal in manifest.signals] == [
        f"{part}.{layer}" for layer in (1, 2) for part in ("queries", "keys", "values")
    ]
    assert manifest.teacher.attention_heads == 4
    assert read_manifest(Folder.of(make_dump("encoder"))).teacher.attention_heads is None
