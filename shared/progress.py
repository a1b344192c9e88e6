"""Progress: a bar on a terminal or in a notebook, and a line every 10 seconds elsewhere (log files, CI)."""

import sys
import time
import warnings
from typing import Any

from tqdm import TqdmExperimentalWarning, tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows how much of a total amount of work is done; the total may be corrected while it runs.

    Use it as a context manager; nothing is shown after it is closed.

    Args:
        label: what is being done, at the start of the bar.
        unit: what is counted, in the plural ("steps").
        total: how much there is to do.
        estimated: whether the total is an estimate.
        bar: False prints lines instead of a bar, for several processes that share a terminal.
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
        """Close the bar, as it is."""
        if self._bar is not None:
            self._bar.close()

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)
        self._last_line = time.monotonic()

    def note(self, text: str) -> None:
        """Show a few words at the end of the bar: what is running at the moment."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def advance(self, count: int) -> None:
        """Count more units as done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            rate = self.done / (self._last_line - self._start)
            text = f"{self.label}: {self.done:,} {self._of} {self.total:,} {self.unit}"
            if rate:
                left = max(self.total - self.done, 0) / rate
                text += f", {human_rate(rate, self.unit)}, {human_seconds(left)} left"
            print(text, file=sys.stderr, flush=True)

    def revise_total(self, total: int) -> None:
        """Correct the total; it is never less than what is already done."""
        self.total = max(total, self.done)
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.refresh()


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel, which can show bars although it is not a terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


def _bar_class() -> Any:
    """Return tqdm's class; in a notebook the bar is a widget if ipywidgets is installed, else text."""
    if not in_notebook():
        return tqdm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmExperimentalWarning)
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.autonotebook import tqdm as notebook_bar
    return notebook_bar


def human_rate(rate: float, unit: str) -> str:
    """Format how much is done a second, and slow work by how long a piece of it takes: 25/s, 1.5/s, 4.2 s a step.

    >>> human_rate(0.2, "steps")
    '5 s a step'
    """
    if rate >= 1 or not rate:
        return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
    return f"{human_seconds(1 / rate) if rate < 0.01 else f'{1 / rate:.2g} s'} a {unit.removesuffix('s')}"


def human_seconds(seconds: float) -> str:
    """Format a duration: 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def human_bytes(count: float) -> str:
    """Format a size in powers of 1,000: 512 B, 3.1 KB, 20 MB."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("KB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.3g} {unit}" if count < 100 else f"{count:.0f} {unit}"
    return f"{count / 1000:,.3g} TB"
