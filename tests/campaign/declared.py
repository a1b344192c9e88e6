"""Every option of the command lines and every key of recipes and sweeps, read from their declarations."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shared.dump.cli import app as shards
from student_train.cli import app as distill
from student_train.losses.specs import LOSSES
from student_train.recipe.columns import DataSection, EvalSection
from student_train.recipe.recipe import Recipe
from student_train.recipe.sections import StageSection, TrainingSection, ValidationSection
from student_train.students import STARTS, STUDENTS
from student_train.sweep.plan import SweepSpec, Variant
from teacher_dump.cli import app as dump


@dataclass(frozen=True)
class Option:
    """One option or argument of a command; `flag` is empty for an argument, and `is_flag` says that it has no value."""

    command: tuple[str, ...]
    name: str
    flag: str
    is_flag: bool


def options() -> list[Option]:
    """Return the options and arguments of all commands."""
    found = list(_options(("dump",), typer.main.get_command(dump)))
    for name, app in (("distill", distill), ("shards", shards)):
        for sub, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
            found += _options((name, sub), command)
    return found


def _options(words: tuple[str, ...], command: Any) -> Iterator[Option]:
    for parameter in command.params:
        is_argument = parameter.param_type_name == "argument"
        flag = "" if is_argument else parameter.opts[0]
        yield Option(words, parameter.name, flag, bool(getattr(parameter, "is_flag", False)))


def recipe_keys() -> list[str]:
    """Return the dotted keys of recipes, with the first item of each list."""
    sections: list[tuple[str, type]] = [
        ("", Recipe),
        ("training.", TrainingSection),
        ("validation.", ValidationSection),
        ("data.", DataSection),
        ("eval.", EvalSection),
        ("stage.0.", StageSection),
        ("stage.1.", StageSection),
    ]
    sections += [("student.", kind) for kind in STUDENTS.values()]
    sections += [("student.start.", kind) for kind in STARTS.values()]
    sections += [(prefix, kind) for kind in LOSSES.values() for prefix in ("loss.0.", "stage.0.loss.0.")]
    return sorted({f"{prefix}{key}" for prefix, section in sections for key in keys_of(section)})


def sweep_keys() -> list[str]:
    """Return the dotted keys of sweeps."""
    sections: list[tuple[str, type]] = [("", SweepSpec), ("variant.0.", Variant)]
    return sorted({f"{prefix}{key}" for prefix, section in sections for key in keys_of(section)})


def keys_of(section: type) -> list[str]:
    """Return the keys of a pydantic model or dataclass, by their names in files."""
    fields: dict[str, FieldInfo] = (
        section.model_fields if issubclass(section, BaseModel) else section.__pydantic_fields__  # type: ignore[attr-defined]
    )
    return [field.alias or name for name, field in fields.items()]
