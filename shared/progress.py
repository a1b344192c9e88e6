"""A progress bar on a terminal or in a notebook, a plain line every now and then elsewhere (log files, CI)."""

import sys
import time
import warnings
from typing import Any

from tqdm import TqdmExperimentalWarning, tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts units of work towards a total that may be revised while it runs.

    Use it as a context manager; nothing is shown once it is closed. Without `bar` it prints lines on a terminal too,
    where several processes share one.
    """

    def __init__(self, label: str, unit: str, total: int, estimated: bool = False, bar: bool = True) -> None:
        self._of = "of about" if estimated else "of"
        self.label, self.unit, self.total, self.done = label, unit, total, 0
        self._start = self._last_line = time.monotonic()
        self._bar = (
            _bar_class()(
                desc=label, unit=f" {unit}", total=total, unit_scale=total > 9999, dynamic_ncols=True, smoothing=0.05
            )
            if bar and (sys.stderr.isatty() or in_notebook())
            else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def say(self, line: str) -> None:
        """Print a line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)
        self._last_line = time.monotonic()

    def note(self, text: str) -> None:
        """Show a few words at the end of the bar: what is at work just now."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def advance(self, count: int) -> None:
        """Count some more as done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            rate = self.done / (self._last_line - self._start)
            left = max(self.total - self.done, 0) / rate if rate else 0.0
            print(
                f"{self.label}: {self.done:,} {self._of} {self.total:,} {self.unit}, {rate:,.0f}/s, "
                f"{human_seconds(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def revise_total(self, total: int) -> None:
        """Correct the total, never to below what is already done."""
        self.total = max(total, self.done)
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.refresh()


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel, whose output shows bars though it is no terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


def _bar_class() -> Any:
    """In a notebook the bar is a widget where ipywidgets is installed, and text where it is not."""
    if not in_notebook():
        return tqdm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmExperimentalWarning)
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.autonotebook import tqdm as notebook_bar
    return notebook_bar


def human_seconds(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def human_bytes(count: float) -> str:
    """512 B, 3.1 KB, 20 MB: powers of 1,000."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("KB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.3g} {unit}" if count < 100 else f"{count:.0f} {unit}"
    return f"{count / 1000:,.3g} TB"
