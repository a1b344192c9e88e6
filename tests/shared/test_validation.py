"""Errors of pydantic become sentences that name the key, its value and what is valid."""

from dataclasses import dataclass as plain
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from shared.registry import Registry, tagged
from shared.validation import in_words


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Circle(Strict):
    kind: Literal["circle"] = "circle"
    radius: float


class Square(Strict):
    kind: Literal["square"] = "square"
    width: float = 1.0


SHAPES: Registry[type[BaseModel]] = Registry("shape", {"circle": Circle, "square": Square})


@plain(frozen=True)
class Lengths:
    length: Annotated[int, Ge(1)] = 5


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Row(Lengths):
    files: tuple[str, ...] = Field(min_length=1)


class Drawing(Strict):
    name: str = Field(default="", alias="title")
    row: Row | None = None
    lengths: Lengths | None = None
    first: Circle | Square | None = Field(default=None, discriminator="kind")
    last: Annotated[BaseModel, tagged(SHAPES, "kind")] | None = None
    best: Annotated[BaseModel, tagged(SHAPES, "kind")] = Square()
    shapes: tuple[Annotated[BaseModel, tagged(SHAPES, "kind")], ...] = ()
    sizes: dict[str, Annotated[tuple[int, ...], Field(min_length=1)]] = {}

    @model_validator(mode="after")
    def _not_both(self) -> "Drawing":
        if self.first and self.last:
            raise ValueError("give either first or last")
        return self


@pytest.mark.parametrize(("content", "sentence"), [
    ({"nmae": 3}, "unknown key 'nmae' (its value is 3); valid here: best, first, last, lengths, row, shapes, "),
    ({"row": {"files": ["a"], "size": 1}}, "unknown key 'row.size' (its value is 1); valid here: files, length"),
    ({"row": {}}, "the key 'row.files' is missing"),
    ({"row": {"files": []}}, "row.files is empty; give it at least 1"),
    ({"row": {"files": ["a"], "length": 0}}, "row.length = 0: Input should be greater than or equal to 1"),
    ({"lengths": {"length": 0}}, "lengths.length = 0: Input should be greater than or equal to 1"),
    ({"lengths": {"len": 2}, "row": {}}, "the key 'row.files' is missing"),
    ({"first": {"kind": "circle"}}, "the key 'first.radius' is missing"),
    ({"first": {"kind": "circle", "radius": 1, "r": 2}}, "unknown key 'first.r' (its value is 2); valid here: kind, r"),
    ({"first": {"kind": "cube"}}, "first.kind = 'cube': the valid ones are 'circle', 'square'"),
    ({"first": {}}, "the key 'first.kind' is missing; the valid ones are 'circle', 'square'"),
    ({"last": {"kind": "square", "width": "x"}}, "last.width = 'x': Input should be a valid number"),
    ({"last": {"kind": "square", "w": 1}}, "unknown key 'last.w' (its value is 1); valid here: kind, width"),
    ({"best": {"kind": "square", "w": 1}}, "unknown key 'best.w' (its value is 1); valid here: kind, width"),
    ({"best": {}}, "the key 'best.kind' is missing; the valid ones are 'circle', 'square'"),
    ({"shapes": [{"kind": "circle", "radius": 1}, {"kind": "cube"}]}, "shapes.1.kind = 'cube': the valid ones are"),
    ({"shapes": [{"kind": "circle", "r": 1, "radius": 1}]}, "unknown key 'shapes.0.r' (its value is 1); valid here: k"),
    ({"sizes": {"large": []}}, "sizes.large is empty; give it at least 1"),
    ({"lengths": {"length": -(10**299)}}, f"lengths.length = -1{'0' * 28}...{'0' * 30}: Input should be greater than"),
    ({"title": 1, "row": {}}, "title = 1: Input should be a valid string; the key 'row.files' is missing"),
    ({"row": [1]}, "row: "),
    ({"first": {"kind": "square"}, "last": {"kind": "square"}}, "give either first or last"),
])  # fmt: skip
def test_a_problem_is_a_sentence(content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Drawing.model_validate(content)
    assert in_words(raised.value, Drawing).startswith(sentence)
