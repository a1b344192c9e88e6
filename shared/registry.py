"""Registries: tables from names to kinds, to which a new task, codec, loss or engine is added.

Each extension point has one table, and no code outside of it tests which kind something is. A table is a `dict`, to
which entries may be added before it is used; an unknown name is refused with the list of the valid ones.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, SerializationInfo, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from shared.errors import UsageError

Kind = TypeVar("Kind")


class Registry(dict[str, Kind]):
    """Kinds by name.

    Args:
        what: what an entry is, in the singular, for messages ("task").
        kinds: the initial entries.

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
        """Return the kind of this name. Raises UsageError, with the valid names, for an unknown one."""
        if name not in self:
            raise UsageError(f"unknown {self.what} {name!r}; there are: {', '.join(self)}.")
        return self[name]


class tagged:  # reads as an adjective in Annotated
    """Declares that the value of a pydantic field is one of the models of a table: the one named by its key `tag`.

    Unlike a discriminated union, it looks up the model when a value is validated, so that entries may be added to the
    table later. Its errors are those of a discriminated union, whose location includes the tag's value.

    Example:
        >>> from typing import Annotated
        >>> class Circle(BaseModel):
        ...     kind: str = "circle"
        ...     radius: float
        >>> shapes = Registry("shape", {"circle": Circle})
        >>> class Drawing(BaseModel):
        ...     shape: Annotated[BaseModel, tagged(shapes, "kind")]
        >>> Drawing.model_validate({"shape": {"kind": "circle", "radius": 2}}).shape
        Circle(kind='circle', radius=2.0)
    """

    def __init__(self, table: Mapping[str, type[BaseModel]], tag: str) -> None:
        self.table, self.tag = table, tag

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(self._serialize, info_arg=True),
        )

    def _validate(self, value: Any) -> BaseModel:
        if isinstance(value, BaseModel) and type(value) in self.table.values():
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("model_type", "Input should be a table of keys")
        if self.tag not in value:
            raise PydanticCustomError("union_tag_not_found", "no {discriminator}", {"discriminator": self.tag})
        name = value[self.tag]
        if not isinstance(name, str) or name not in self.table:
            valid = ", ".join(map(repr, self.table))
            context = {"discriminator": self.tag, "tag": str(name), "expected_tags": valid}
            message = "{discriminator} '{tag}' is none of {expected_tags}"
            raise PydanticCustomError("union_tag_invalid", message, context)
        try:
            return self.table[name].model_validate(value)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                error.title, [_below(name, each) for each in error.errors()]
            ) from None

    def _serialize(self, value: BaseModel, info: SerializationInfo) -> Any:
        return value.model_dump(
            mode=info.mode, exclude_unset=info.exclude_unset, exclude_defaults=info.exclude_defaults
        )


def _below(name: str, error: Any) -> InitErrorDetails:
    """Return the error with a name prepended to its location."""
    message = {**error.get("ctx", {}), "message": error["msg"]}
    kind = PydanticCustomError(error["type"], "{message}", message)
    return InitErrorDetails(type=kind, loc=(name, *error["loc"]), input=error["input"])
