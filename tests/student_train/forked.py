"""Commands of `distill` as forked processes, for tests of what starts them as children."""

import os
import sys
from typing import Any

from student_train import cli


class Forked:
    """What Popen does, without the seconds that a new interpreter takes to import torch."""

    def __init__(self, command: list[str], *, stdout: Any, env: dict[str, str], **_: Any) -> None:
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            code: Any = 1
            try:
                os.setpgid(0, 0)
                for number in (1, 2):
                    os.dup2(stdout.fileno(), number)
                sys.stdout = sys.stderr = os.fdopen(1, "w")
                os.environ |= env
                sys.argv = command[2:]
                cli.main()
            except SystemExit as end:
                code = end.code
            finally:
                sys.stdout.flush()
                os._exit(code or 0)
