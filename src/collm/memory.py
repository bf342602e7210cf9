"""Main memory that is free goes back to the system, where the C library would keep it.

Tensors are aligned, and what one of them leaves in the heap of glibc is too small for the next one of its size once
something else lies beside it. Between a rollout and an update, when next to nothing is in use, the heap is given back
as a whole, so that it does not grow from one to the next.
"""

from __future__ import annotations

import ctypes
import os
import sys

_WORTH_IT = 2**30  # bytes; to take that many anew costs a tenth of a second or more

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
_least = 0  # bytes held after memory was given back


def give_back() -> None:
    """Give free memory back if this process holds much more than after the last time."""
    global _least
    if _trim is not None and _resident() - _least >= _WORTH_IT:
        _trim(0)
        _least = _resident()


def _resident() -> int:
    """Bytes of main memory that this process holds."""
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
