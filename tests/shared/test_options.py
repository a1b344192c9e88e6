"""Options are declared once: a group gives every command that takes it the same options."""

import dataclasses
import inspect
import math
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import pytest
import typer
from annotated_doc import Doc
from annotated_types import Ge, Le
from typer.testing import CliRunner

from shared.dump.codecs import Draws, Sparse
from shared.errors import UsageError
from shared.options import check_values, grouped, options_of
from shared.text.columns import ColumnNames, ScoredColumns
from shared.text.lengths import Lengths, Positions
from student_train.cli import app as distill
from student_train.recipe.columns import DataSection, EvalSection
from student_train.recipe.decoding import Decoding
from teacher_dump import annotate
from teacher_dump.cli import app as dump
from teacher_dump.cli import dump as dump_command
from teacher_dump.request import Distributions, Request, Running, Source, Storage, Vectors

WITH_NUMBERS = (int, float, int | None, float | None)
DISTILL = typer.main.get_command(distill).commands
COMMANDS = {"dump": typer.main.get_command(dump), "eval": DISTILL["eval"], "export": DISTILL["export"]}
TAKEN = {
    "dump": (ColumnNames, Positions, Lengths, Source, Distributions, Vectors, Running, Storage),
    "eval": (ScoredColumns, Positions),
    "export": (ColumnNames,),
}
GROUPS = sorted({group for groups in TAKEN.values() for group in groups}, key=lambda group: group.__name__)
# Gold labels may be missing where a teacher runs; eval's length is by default what the model takes.
FROM_PYTHON = {"engine", "signals"}  # the command line has shorthands for them
OTHERWISE_IN_DUMP = {"label_column", "tags_column", "answers_column"}
OTHERWISE_IN_EVAL = {"max_length"}
# A recipe learns nothing from rows of one token.
OTHERWISE_IN_RECIPE = {DataSection: {"max_length"}}


def shown(command: Any) -> dict[str, tuple[Any, ...]]:
    """Name -> flags, help, default, metavar and least value of each option of a command."""
    return {
        option.name: (option.opts, option.help, option.default, option.metavar, option.min) for option in command.params
    }


def alone(group: type[Any]) -> Any:
    """A command that takes this group only."""

    @grouped
    def command(group: group) -> None: ...

    app = typer.Typer(add_completion=False)
    app.command()(command)
    return typer.main.get_command(app)


@pytest.mark.parametrize(("name", "group"), [(name, group) for name, groups in TAKEN.items() for group in groups])
def test_a_groups_options_are_the_same_in_every_command(name: str, group: type[Any]) -> None:
    of_command = shown(COMMANDS[name])
    for option, facts in shown(alone(group)).items():
        if option != "help" and not (name == "dump" and option in OTHERWISE_IN_DUMP):
            assert of_command[option] == facts


@pytest.mark.parametrize("option", sorted(OTHERWISE_IN_DUMP))
def test_what_dump_says_otherwise_is_its_default(option: str) -> None:
    (_, help_, default, *_), (_, elsewhere, usual, *_) = (shown(COMMANDS[name])[option] for name in ("dump", "eval"))
    assert (default, usual) == (None, getattr(ColumnNames(), option))
    assert help_.startswith(elsewhere.rstrip("."))
    assert f"By default '{usual}' if the file has it; 'none' ignores it." in help_


def test_every_field_of_a_request_is_an_option_and_every_option_a_field() -> None:
    options = {option.name for option in COMMANDS["dump"].params}
    assert options - {"dry_run", "help"} == {field.name for field in dataclasses.fields(Request)} - FROM_PYTHON


def test_no_option_is_declared_twice() -> None:
    declared = [name for group in GROUPS for name in inspect.get_annotations(group)]
    assert sorted(declared) == sorted(set(declared))
    assert set(inspect.get_annotations(Request)) == OTHERWISE_IN_DUMP
    shared = {name for group in (ScoredColumns, Positions, Lengths, Decoding) for name in group.__dataclass_fields__}
    for section in (DataSection, EvalSection):
        assert set(inspect.get_annotations(section)) & shared == OTHERWISE_IN_RECIPE.get(section, set())
    for name, command in (("dump", dump_command), *((c.name, c.callback) for c in distill.registered_commands)):
        by_hand = set(inspect.signature(inspect.unwrap(command)).parameters)
        assert by_hand & shared == (OTHERWISE_IN_EVAL if name == "eval" else set())


def test_every_option_has_a_help_text() -> None:
    for command in COMMANDS.values():
        assert all(option.help and option.help.endswith(".") for option in command.params)


@pytest.mark.parametrize(("section", "groups"), [
    (DataSection, (ColumnNames, Positions, Lengths)),
    (EvalSection, (ScoredColumns, Positions, Decoding)),
])  # fmt: skip
def test_a_recipes_keys_are_the_options_of_the_command_lines(section: Any, groups: tuple[type[Any], ...]) -> None:
    keys = section.__pydantic_fields__
    for group in groups:
        for field in dataclasses.fields(group):
            assert keys[field.name].default == field.default
            facts = get_type_hints(group, include_extras=True)[field.name].__metadata__
            if field.name not in OTHERWISE_IN_RECIPE.get(section, set()):
                assert tuple(keys[field.name].metadata) == facts


def requested(monkeypatch: pytest.MonkeyPatch, *words: str) -> Request:
    """What a `dump` command of these words asks for."""
    asked: list[Request] = []

    def prepare(request: Request) -> None:
        asked.append(request)
        raise typer.Exit

    monkeypatch.setattr(annotate, "prepare", prepare)
    ended = CliRunner().invoke(dump, words)
    assert ended.exit_code == 0, ended.output
    return asked[0]


NAMED = ("--teacher", "t", "--task", "encoder", "--data", "a", "--data", "b", "--out", "o")


def test_the_command_lines_defaults_are_those_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert requested(monkeypatch, *NAMED) == Request("t", "encoder", ("a", "b"), "o")


SHARES = {"threshold": 0.25, "top_p": 0.75}


def test_every_option_reaches_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    words, expected, types = list(NAMED), {}, get_type_hints(Request)
    for field in dataclasses.fields(Request):
        if field.default is dataclasses.MISSING or field.name in FROM_PYTHON:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        value: Any = True
        if field.default is not False:
            is_text = types[field.name] in (str, str | None)
            value = SHARES.get(field.name, f"given {field.name}" if is_text else len(expected) + 3)
        expected[field.name] = value
        words += [flag] if value is True else [flag, str(value)]
    assert len(expected) > 40
    assert requested(monkeypatch, *words) == Request("t", "encoder", ("a", "b"), "o", **expected)


NUMBERS = sorted(
    field.name for field in dataclasses.fields(Request) if get_type_hints(Request)[field.name] in WITH_NUMBERS
)


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_bounds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line and from Python."""
    monkeypatch.setattr(annotate, "prepare", lambda request: pytest.fail(f"{request} was accepted"))
    flag = f"--{name.replace('_', '-')}"
    for value in ("nan", "inf", "-inf", "-1", "1e999", "1" + "0" * 30, "9" * 5000, "", "1_0x", "\u00b2"):
        ended = CliRunner().invoke(dump, (*NAMED, f"{flag}={value}"))
        said = str(ended.exception) if isinstance(ended.exception, UsageError) else ended.output
        assert ended.exit_code == 2 or isinstance(ended.exception, UsageError), (value, ended.exception)
        assert flag in said, value
    for odd in (math.nan, math.inf, -math.inf, -1, 10**30, "", "1", True, [1], b"1"):
        with pytest.raises(UsageError, match=f"{flag} .*: give a"):
            check_values(Request("t", "encoder", ("a",), "o", **{name: odd}))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threshold": math.nan}, "--threshold nan: give a number of at least 1e-09 and less than 1."),
        ({"top_p": 0}, "--top-p 0: give a number of more than 0 and at most 1."),
        ({"max_length": True}, "--max-length True: give a whole number."),
        ({"max_length": 1.5}, "--max-length 1.5: give a whole number."),
        ({"batch_tokens": 0}, "--batch-tokens 0: give a number of at least 1 and at most 1,000,000,000."),
        ({"hidden": None}, "--hidden None: give a text."),
        ({"dense": 1}, "--dense 1: give True or False."),
        ({"task": "a\ud800"}, r"--task 'a\ud800': this is not valid UTF-8; give it as text."),
        ({"data": (Path("a"),)}, "--data PosixPath('a'): give a text."),
    ],
)
def test_values_from_python_are_checked(options: dict[str, Any], sentence: str) -> None:
    given = {"teacher": "t", "task": "encoder", "data": ("a",), "out": "o"} | options
    with pytest.raises(UsageError) as raised:
        check_values(Request(**given))
    assert str(raised.value) == sentence


def test_bounds_are_those_of_the_codecs() -> None:
    """The request loads no torch, so it cannot take them from there."""
    for field, model, name in (("levels", Sparse, "levels"), ("draws", Draws, "draws")):
        facts = get_type_hints(Request, include_extras=True)[field].__metadata__
        bounds = [fact for fact in facts if isinstance(fact, Ge | Le)]
        assert bounds == list(model.model_fields[name].metadata)


@dataclasses.dataclass(frozen=True)
class Toy:
    size: Annotated[int, Ge(2), Doc("How large.")] = 3
    files: Annotated[tuple[str, ...], Doc("Which.")] = ()
    is_loud: Annotated[bool, Doc("Louder.")] = False


def test_a_group_becomes_options_and_comes_back_as_one_value() -> None:
    app = typer.Typer()

    @app.command()
    @grouped
    def show(toy: Toy, name: Annotated[str, typer.Argument()] = "x") -> None:
        typer.echo(f"{toy} {name}")

    def called(*words: str) -> Any:
        return CliRunner().invoke(app, words)

    assert called().output == f"{Toy()} x\n"
    assert called("y", "--size", "2", "--files", "a", "--files", "b", "--is-loud").output == (
        f"{Toy(2, ('a', 'b'), True)} y\n"
    )
    assert called("--size", "1").exit_code == 2
    assert called("--no-is-loud").exit_code == 2


def test_an_option_without_help_is_refused() -> None:
    @dataclasses.dataclass
    class Mute:
        size: int = 1

    with pytest.raises(TypeError, match="the option size has no help text"):
        options_of(Mute)


def test_two_groups_with_one_name_are_refused() -> None:
    def command(one: Toy, other: Toy) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name"):
        grouped(command)


def test_a_request_loads_neither_torch_nor_pyarrow_nor_numpy() -> None:
    check = "import sys, teacher_dump.cli; sys.exit(any(name in sys.modules for name in ('torch', 'pyarrow', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_help_texts_name_what_the_tables_have() -> None:
    from shared.dump.codecs import VECTOR_KINDS
    from shared.dump.codecs.selection.presets import PRESETS
    from shared.dump.manifest import Compression
    from shared.text.tasks import TASKS

    options = shown(COMMANDS["dump"])
    choices = {name: [c for c in task.layouts if c is not None] for name, task in TASKS.items()}
    for option, names in {
        "task": TASKS,
        "preset": PRESETS,
        "exact_codec": VECTOR_KINDS,
        "hidden_codec": VECTOR_KINDS,
        "compression": get_args(Compression),
        "positions": [word for task, found in choices.items() if found for word in (f"{task}:", *found)],
    }.items():
        help_ = options[option][1]
        assert not [name for name in names if name not in help_]
