"""Freed memory is kept for the next batch."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Have glibc reuse large blocks instead of handing them back and fetching fresh pages for every batch.

    A batch's logits are tens of megabytes, and the kernel clears every page that it hands out: on a CPU that can take
    as long as the arithmetic. Does nothing elsewhere.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
