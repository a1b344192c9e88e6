"""Prefetching: an iterator that runs in its own thread, a bounded number of items ahead of its reader.

The stages of a pipeline are generators, each reading from the one before it; `ahead` runs one in a thread:

    with ahead(read(corpus), 4) as batches, ahead(run(teacher, batches), 4) as results:
        write(results)

An error in a stage is raised where its items are read, so that it ends the whole pipeline with its original cause.
Leaving the block stops the threads. No item is dropped, repeated or reordered.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ahead(Generic[Item]):  # read as an adverb in a with statement
    """Iterate over `items` in a thread, at most `depth` items ahead of the reader of this iterator.

    Attributes:
        starved_seconds: how long the reader has waited for an item.
        blocked_seconds: how long the thread has waited because `depth` items were unread.

    Example:
        >>> with ahead(range(3), depth=2) as numbers:
        ...     list(numbers)
        [0, 1, 2]
    """

    def __init__(self, items: Iterable[Item], depth: int) -> None:
        if depth < 1:
            raise ValueError(f"depth is {depth}; it must be at least 1")
        self.starved_seconds = self.blocked_seconds = 0.0
        self._items, self._depth = items, depth
        self._ready: deque[Item] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)

    def __enter__(self) -> "ahead[Item]":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        # Wait for its end: what it works on (a model, a file) may be used differently or closed after this.
        self._thread.join()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        with self._changed:
            self.starved_seconds += self._wait_while(lambda: not self._ready and not self._ended)
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            raise StopIteration

    def _run(self) -> None:
        try:
            items = iter(self._items)
            while self._wait_for_room():
                try:
                    item = next(items)
                except StopIteration:
                    break
                with self._changed:
                    self._ready.append(item)
                    self._changed.notify_all()
            if close := getattr(items, "close", None):
                close()
        except BaseException as error:  # any error must reach the reader
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Wait until one more item may be unread, before that item is computed. Return False once stopped."""
        with self._changed:
            self.blocked_seconds += self._wait_while(lambda: len(self._ready) >= self._depth and not self._stopped)
            return not self._stopped

    def _wait_while(self, condition) -> float:  # type: ignore[no-untyped-def]
        start = time.monotonic()
        while condition():
            self._changed.wait()
        return time.monotonic() - start
