"""Options of command lines, declared once: options that belong together are the fields of one dataclass, a group.

A field's name, type, default, help text (`Doc`) and bounds (`Ge`, `Gt`, `Le`, `Lt`) are those of its option; a section
of a recipe with the same keys inherits the group. `check_values` holds callers from Python to the same types and
bounds. Settings of the command line alone (a metavar, a parser) are a
`typer.Option` in the field's annotation; `NoOption` and `AsText` mark what is available only from Python. `grouped`
lets a command take whole groups, so that no function lists their options again.
"""

import dataclasses
import functools
import inspect
import math
import operator
from collections.abc import Callable
from copy import copy
from numbers import Integral, Real
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer
from annotated_doc import Doc
from annotated_types import Ge, Gt, Le, Lt
from typer.models import OptionInfo

from shared.errors import UsageError

Result = TypeVar("Result")

# The largest number of rows, tokens or bytes that an option takes: it only keeps out what no computer can do.
MOST = 10**9

# The types of numbers and texts -> what a value must be an instance of, and its name in messages.
_KINDS: dict[Any, tuple[type[Any], str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a text"),
    bool: (bool, "True or False"),
    NoneType: (NoneType, "None"),
}
_BOUNDS: dict[type[Any], tuple[str, Callable[[Any, Any], bool], str]] = {
    Ge: ("ge", operator.ge, "at least"),
    Gt: ("gt", operator.gt, "more than"),
    Le: ("le", operator.le, "at most"),
    Lt: ("lt", operator.lt, "less than"),
}


class NoOption:
    """Marks a field of a group without an option; on the command line it has its default."""


class AsText:
    """Marks a field of a group whose option takes text, although its type also allows other values in Python."""


def grouped(command: Callable[..., Result]) -> Callable[..., Result]:
    """Return a command for typer that has one parameter for each field of the groups that `command` takes.

    Other parameters are unchanged; the options are in the order of the parameters.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Lengths:
        ...     max_length: Annotated[int, Ge(1), Doc("Rows are cut to this many tokens.")] = 512
        >>> @grouped
        ... def show(lengths: Lengths, dry_run: bool = False) -> str:
        ...     return f"{lengths} {dry_run}"
        >>> list(inspect.signature(show).parameters), show(max_length=8, dry_run=True)
        (['max_length', 'dry_run'], 'Lengths(max_length=8) True')

    Raises:
        TypeError: for a field without a help text.
        ValueError: if two groups have an option of the same name.
        UsageError: when it is called, for a value of another type or beyond its bounds.
    """
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group = parameter.annotation
        if isinstance(group, type) and dataclasses.is_dataclass(group):
            groups[parameter.name] = group
            parameters += options_of(group)
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def flat(**given: Any) -> Result:
        filled = {}
        for name, group in groups.items():
            # Callers from Python may leave options out; these have the defaults of the group.
            values = {option.name: given.pop(option.name) for option in options_of(group) if option.name in given}
            # Typer gives lists, but the fields are tuples.
            filled[name] = group(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
            check_values(filled[name])
        return command(**filled, **given)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return flat


def check_values(group: Any) -> None:
    """Check the values of a group. Raises UsageError for one of another type than its field's, or beyond its bounds."""
    for name, (kinds, bounds) in _allowed(type(group)).items():
        value = getattr(group, name)
        for one in value if isinstance(value, tuple) else (value,):
            _check_value(flag_of(name), one, kinds, bounds)


def _allowed(group: type[Any]) -> dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Return (types, bounds) of the fields whose values are numbers and texts, or several of one such type."""
    allowed = {}
    for field, annotation in get_type_hints(group, include_extras=True).items():
        kind, *facts = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
        kinds = tuple(each for each in get_args(kind) if each is not Ellipsis) or (kind,)
        if all(each in _KINDS for each in kinds):
            allowed[field] = kinds, tuple(fact for fact in facts if type(fact) in _BOUNDS)
    return allowed


def _check_value(flag: str, value: Any, kinds: tuple[Any, ...], bounds: tuple[Any, ...]) -> None:
    is_right_kind = any(
        isinstance(value, _KINDS[kind][0]) and isinstance(value, bool) <= (kind is bool) for kind in kinds
    )
    if not is_right_kind:
        shown, valid = f"{value!r:.80}", " or ".join(_KINDS[kind][1] for kind in kinds if kind is not NoneType)
        raise UsageError(f"{flag} {shown}: give {valid}.")
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise UsageError(f"{flag} {value!r:.80}: this is not valid UTF-8; give it as text.")
        return
    if value is None or isinstance(value, bool):
        return
    limits = [
        (compare, getattr(fact, name), words) for fact in bounds for name, compare, words in [_BOUNDS[type(fact)]]
    ]
    # A whole number is finite, and may be too large to be asked whether it is.
    is_finite = isinstance(value, Integral) or math.isfinite(value)
    if not is_finite or not all(compare(value, limit) for compare, limit, _ in limits):
        valid = " and ".join(f"{words} {limit:,}" for _, limit, words in limits)
        raise UsageError(f"{flag} {value!s:.40}: give a number{f' of {valid}' if valid else ''}.")


def flag_of(name: str) -> str:
    """Return the option of a field: "top_k" -> "--top-k"."""
    return f"--{name.replace('_', '-')}"


def options_of(group: type[Any]) -> list[inspect.Parameter]:
    """Return a parameter for typer for each field of a group. Raises TypeError for a field without a help text."""
    annotations = get_type_hints(group, include_extras=True)
    return [
        _option(field, annotations[field.name])
        for field in dataclasses.fields(group)
        if NoOption not in getattr(annotations[field.name], "__metadata__", ())
    ]


def _option(field: "dataclasses.Field[Any]", annotation: Any) -> inspect.Parameter:
    kind, *facts = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    option = next((copy(fact) for fact in facts if isinstance(fact, OptionInfo)), typer.Option())
    option.help = next((fact.documentation for fact in facts if isinstance(fact, Doc)), None)
    if option.help is None:
        raise TypeError(f"the option {field.name} has no help text; annotate it with Doc.")
    option.min = next((fact.ge for fact in facts if isinstance(fact, Ge)), None)
    option.default = ... if field.default is dataclasses.MISSING else field.default
    if kind is bool:  # a flag; by default typer would add --no-NAME
        option.param_decls = (flag_of(field.name),)
    if AsText in facts:
        kind = str
    if get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)
