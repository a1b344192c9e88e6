"""The common part of the command lines: foreseeable errors become one paragraph on stderr and an exit code.

Exit codes: 0 done, 1 the work failed, 2 the call was wrong, 130 interrupted.
"""

import os
import re
import sys
import textwrap

import typer

from shared.errors import LecternError
from shared.memory import keep_freed_memory
from shared.printable import print_safely

DEBUG = "--debug"
INTERRUPTED = 130
# Two full stops, but not three, where a sentence ends.
_TWO_STOPS = re.compile(r"(?<![./\s])\.\.(?=[\s);:,]|$)")
EPILOG = "Add --debug to any command to see the traceback behind an error."


def run(app: typer.Typer, several: tuple[str, ...] = ()) -> None:
    """Run a typer app as a command line, and exit.

    Options listed in `several` take any number of values (`--data a.jsonl b.jsonl`), as an unquoted glob gives them.
    """
    print_safely()
    debug = DEBUG in sys.argv
    arguments = _repeat_options([argument for argument in sys.argv[1:] if argument != DEBUG], several)
    # No telemetry unless the user asks for it; models from the hub still work.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Recipes put new heads on checkpoints; transformers would print a table of warnings about each.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Threads that spin while they wait make a step of a small model up to a thousand times slower when another process
    # uses the core (0.4 ms became 250 ms). Torch reads this variable when it is first imported, which is after this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    try:
        code = app(args=arguments, standalone_mode=False)
        if code == INTERRUPTED:  # newer versions of typer return this for Ctrl-C
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        message = "interrupted; finished work is kept, and the same command continues from there."
        _fail(message, INTERRUPTED, debug)
    except LecternError as error:
        _fail(str(error), error.exit_code, debug)
    except typer.TyperException as error:  # an unknown or missing option, a value that does not fit
        _fail(f"{error.format_message().rstrip('.')}. See --help.", error.exit_code, debug)
    except OSError as error:
        _fail(f"{error.filename or 'input/output'}: {error.strerror or error}.", 1, debug)
    sys.exit(code if isinstance(code, int) else 0)


def _repeat_options(arguments: list[str], several: tuple[str, ...]) -> list[str]:
    """Return `--data a b` as `--data a --data b`, which is what typer understands."""
    repeated: list[str] = []
    open_option = None
    for previous, argument in zip([None, *arguments], arguments, strict=False):
        if argument.startswith("-"):
            open_option = argument if argument in several else None
        elif open_option is not None and previous != open_option:
            repeated.append(open_option)
        repeated.append(argument)
    return repeated


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        raise
    # A quoted reason of a library may end like the sentence around it.
    text = _TWO_STOPS.sub(".", message)
    # As an indent, "error:" stays before a path that is longer than a line.
    lines = textwrap.fill(text, 100, initial_indent="error: ", break_long_words=False, break_on_hyphens=False)
    print(lines, file=sys.stderr)
    sys.exit(code)
