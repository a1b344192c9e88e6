"""Tables of kinds: where the next task, codec, loss or engine plugs in.

Each seam has one table from names to kinds, and nobody outside of it asks which kind something is. A table is a `dict`,
so that anything may add an entry to it before it is used; what it lacks is refused with what it has.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, PlainValidator, SerializeAsAny
from pydantic_core import PydanticCustomError

from shared.errors import UsageError

Kind = TypeVar("Kind")


class Registry(dict[str, Kind]):
    """Kinds by name.

    Args:
        what: what the entries are, in the singular, for messages ("task").
        kinds: the entries that there are from the start.

    Example:
        >>> colours = Registry("colour", {"red": 0xFF0000})
        >>> colours.named("red")
        16711680
        >>> colours.named("green")
        Traceback (most recent call last):
        shared.errors.UsageError: unknown colour 'green'; there are: red.
    """

    def __init__(self, what: str, kinds: Mapping[str, Kind] | None = None) -> None:
        super().__init__(kinds or {})
        self.what = what

    def named(self, name: str) -> Kind:
        """The kind of this name. Raises UsageError that lists the valid ones."""
        if name not in self:
            raise UsageError(f"unknown {self.what} {name!r}; there are: {', '.join(self)}.")
        return self[name]


def tagged(table: Mapping[str, type[BaseModel]], tag: str) -> Any:
    """The type of a pydantic field whose value is a model of the table: the one that the value's key `tag` names.

    Unlike a discriminated union it looks the model up when a value is validated, so that entries may be added to the
    table later.
    """

    def validate(value: Any) -> BaseModel:
        if isinstance(value, BaseModel) and type(value) in table.values():
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("model_type", "Input should be a table of keys")
        valid = ", ".join(map(repr, table))
        if tag not in value:
            raise PydanticCustomError("union_tag_not_found", "no {tag}; {expected}", {"tag": tag, "expected": valid})
        if value[tag] not in table:
            context = {"key": tag, "tag": value[tag], "expected_tags": valid}
            raise PydanticCustomError("union_tag_invalid", "{key} {tag} is none of {expected_tags}", context)
        # Errors of the inner model keep their places: pydantic puts this field's place before them.
        return table[value[tag]].model_validate(value)

    return Annotated[SerializeAsAny[BaseModel], PlainValidator(validate)]
