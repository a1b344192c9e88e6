"""What the command lines have in common: one paragraph for a foreseeable error, and exit codes.

0 done, 1 the work failed, 2 the call was wrong, 130 interrupted.
"""

import os
import sys
import textwrap

import typer

from shared.errors import LecternError

DEBUG = "--debug"
INTERRUPTED = 130
EPILOG = "Add --debug to any command to see the traceback behind an error."


def run(app: typer.Typer) -> None:
    """Run a typer app as a command line; never returns."""
    debug = DEBUG in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG]
    # Nobody asked for look-ups at the hub or for telemetry; a hub id as a teacher still works.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Threads that spin while they wait make a small model's step up to a thousand times slower when another process
    # has the core (0.4 ms became 250 ms). Read when torch is first imported, which is after this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(args=arguments, standalone_mode=False)
        if code == INTERRUPTED:  # newer versions of typer turn Ctrl-C into this
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        message = "interrupted; what is finished is kept, and the same command goes on from there."
        _fail(message, INTERRUPTED, debug)
    except LecternError as error:
        _fail(str(error), error.exit_code, debug)
    except typer.TyperException as error:  # an unknown or missing option, a value that does not fit
        _fail(f"{error.format_message().rstrip('.')}. See --help.", error.exit_code, debug)
    except OSError as error:
        _fail(f"{error.filename or 'input/output'}: {error.strerror or error}.", 1, debug)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        raise
    print(
        textwrap.fill(f"error: {message}", width=100, break_long_words=False, break_on_hyphens=False), file=sys.stderr
    )
    sys.exit(code)
