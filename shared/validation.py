"""Errors of pydantic as sentences for our error messages: the key, its value, and what is valid."""

from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from shared.registry import tagged

LONGEST_VALUE = 60


def in_words(error: ValidationError, model: type[Any]) -> str:
    """Return all problems that pydantic found when it validated `model`, as one sentence without its full stop."""
    return "; ".join(_sentence(problem, model) for problem in error.errors())


def message_of(problem: Any) -> str:
    """Return what is wrong with a value, without its location and full stop."""
    message: str = problem["msg"]
    return message.removeprefix("Value error, ").rstrip(".")


def shortened(value: Any) -> str:
    """Return a value as a message shows it, cut to LONGEST_VALUE characters.

    >>> shortened("x" * 1000)[-4:]
    "xxx'"
    """
    text = repr(value)
    if len(text) <= LONGEST_VALUE:
        return text
    return f"{text[: LONGEST_VALUE // 2]}...{text[-LONGEST_VALUE // 2 :]}"


def _sentence(problem: Any, model: type[Any]) -> str:
    """Return one problem as text: key, value, what is valid."""
    location = problem["loc"]
    keys, models = _follow(model, location)
    key, value = ".".join(keys), problem["input"]
    match problem["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":  # of a model, of a dataclass
            valid = {name for section in _follow(model, location[:-1])[1] for name in _fields(section)}
            names = ", ".join(sorted(valid)) or "none"
            return f"unknown key {shortened(key)} (its value is {shortened(value)}); valid here: {names}"
        case "missing":
            return f"the key {key!r} is missing"
        case "too_short" if not value:
            return f"{key} is empty; give it at least {problem['ctx']['min_length']}"
        case "union_tag_invalid":
            context = problem["ctx"]
            return f"{key}.{_tag(problem)} = {shortened(context['tag'])}: the valid ones are {context['expected_tags']}"
        case "union_tag_not_found":
            tag = _tag(problem)
            kinds = ", ".join(repr(_fields(each)[tag].default) for each in models)
            return f"the key '{key}.{tag}' is missing; the valid ones are {kinds}"
    value_text = "" if isinstance(value, (dict, list)) else f" = {shortened(value)}"
    return f"{key}{value_text}: {message_of(problem)}" if key else message_of(problem)


def _follow(model: type[Any], location: tuple[int | str, ...]) -> tuple[list[str], list[type[Any]]]:
    """Return (the keys of the file at a pydantic location, the models that are possible there).

    Where a union or a table allows several models, the location contains the tag of one, which is no key of the file.
    """
    keys: list[str] = []
    models = [model]
    for part in location:
        chosen = [each for each in models if any(_names(field, part) for field in _fields(each).values())]
        if isinstance(part, int):
            keys.append(str(part))
        elif len(models) == 1 and part in _fields(models[0]):
            keys.append(part)
            models = _models(_fields(models[0])[part])
        elif chosen:
            models = chosen
        else:
            keys.append(part)
            models = []
    return keys, models


def _tag(problem: Any) -> str:
    """Return the key whose value selects a model of a union or a table (pydantic puts it in quotes)."""
    tag: str = problem["ctx"]["discriminator"]
    return tag.strip("'")


def _names(field: FieldInfo, part: int | str) -> bool:
    """Whether this is the only value that a field can have, as for the tag of a model of a union or a table."""
    return get_origin(field.annotation) is Literal and get_args(field.annotation) == (part,)


def _fields(model: type[Any]) -> dict[str, FieldInfo]:
    """Return the fields of a pydantic model or dataclass, by their names in a file."""
    fields: dict[str, FieldInfo] = getattr(model, "__pydantic_fields__", {})  # plain dataclasses have none
    return {field.alias or name: field for name, field in fields.items()}


def _models(annotation: Any) -> list[type[Any]]:
    """Return the models that a field or an annotation consists of: a section, an optional one, a union, a table, or a
    tuple of them."""
    if isinstance(annotation, FieldInfo):
        return _tables(annotation.metadata) or _models(annotation.annotation)
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        return [annotation]
    inner = [model for part in get_args(annotation) for model in _models(part)]
    return _tables(getattr(annotation, "__metadata__", ())) or inner


def _tables(metadata: Any) -> list[type[Any]]:
    return [model for part in metadata if isinstance(part, tagged) for model in part.table.values()]
