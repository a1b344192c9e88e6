"""Options of command lines, declared once: options that belong together are the fields of one dataclass, a group.

A field's name, type, default, help text (`Doc`) and smallest value (`Ge`) are those of its option; a section of a
recipe with the same keys inherits the group. Settings of the command line alone (a metavar, a parser) are a
`typer.Option` in the field's annotation; `NoOption` and `AsText` mark what is available only from Python. `grouped`
lets a command take whole groups, so that no function lists their options again.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from copy import copy
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer
from annotated_doc import Doc
from annotated_types import Ge
from typer.models import OptionInfo

Result = TypeVar("Result")


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
        return command(**filled, **given)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return flat


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
