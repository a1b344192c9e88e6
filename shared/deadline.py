"""Stop Python code that does not come to an end, such as a template with nested loops.

Code of a template runs in the thread that tokenizes, so no signal reaches it. Another thread looks every tenth of a
second for deadlines that have passed, and has CPython raise an exception in their threads, between two instructions.
(One long call of C code, such as the product of two huge numbers, is only stopped when it returns.)
"""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LOOKS = 0.1
# The thread that looks ends when there has been nothing to look for this often.
IDLE_LOOKS = 20

# In CPython this sets the exception that a thread raises at its next instruction; None takes it back.
_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_lock = threading.Lock()
# The time of the deadline of each thread that has one.
_deadlines: dict[int, float] = {}
_watcher: threading.Thread | None = None


class _Late(BaseException):
    """Raised in the thread that is too late. Not an Exception, so that the code itself does not catch it."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimeoutError if the block is not finished after this time, or a tenth of a second later.

    Blocks in one thread must not be nested.
    """
    thread = threading.get_ident()
    try:
        try:
            with _lock:
                _deadlines[thread] = time.monotonic() + seconds
                _watch()
            yield
        finally:
            with _lock:
                _deadlines.pop(thread, None)
                _raise_in(ctypes.c_ulong(thread), None)  # in case that it has been set, but not raised yet
    except _Late:
        raise TimeoutError(f"not finished after {seconds:g} seconds") from None


def _watch() -> None:
    """Start the thread that looks, unless it runs. (After a fork it does not.)"""
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        _watcher = threading.Thread(target=_look, daemon=True, name="deadlines")
        _watcher.start()


def _look() -> None:
    global _watcher
    idle = 0
    while True:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        with _lock:
            idle = 0 if _deadlines else idle + 1
            if idle >= IDLE_LOOKS:
                _watcher = None
                return
            for thread in [thread for thread, end in _deadlines.items() if end < time.monotonic()]:
                del _deadlines[thread]
                _raise_in(ctypes.c_ulong(thread), ctypes.py_object(_Late))
