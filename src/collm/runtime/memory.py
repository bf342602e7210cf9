"""When main memory that is free goes back to the system: not at once, but before it is much.

On its own, glibc gives back the end of its heap whenever that is free, and an update takes it anew a moment later, page
by page; what lies elsewhere it never gives back. There tensors leave holes too small for the next one of their size,
since they are aligned. So the heap is kept while models compute, and given back as a whole between a rollout and an
update, when next to nothing is in use, if it has grown.
"""

from __future__ import annotations

import ctypes
import os
import sys

_WORTH_IT = 2**30  # bytes; to take that many anew costs a tenth of a second or more
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt

_glibc = ctypes.CDLL(None) if sys.platform == "linux" else None
_trim = getattr(_glibc, "malloc_trim", None)
_least = 0  # bytes held after memory was given back


def keep() -> None:
    """From now on keep what is free, until it is given back; blocks of 32 MB or more still come and go on their own."""
    if _glibc is not None:
        _glibc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        _glibc.mallopt(_MMAP_THRESHOLD, 2**25)


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
