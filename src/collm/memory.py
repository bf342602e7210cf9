"""Main memory that is free goes back to the system, where the C library would keep it.

Tensors are aligned, and what one of them leaves in the heap of glibc is too small for the next one of its size once
something else lies beside it. Between a rollout and an update, when next to nothing is in use, the heap is given back
as a whole, so that it does not grow from one to the next.
"""

from __future__ import annotations

import ctypes
import sys
import time

_PAUSE = 5.0  # seconds; pages that are taken anew cost a tenth of a second per gigabyte or more

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
_last = -_PAUSE


def give_back() -> None:
    """Give free memory back, unless that was done a moment ago."""
    global _last
    if _trim is not None and time.monotonic() - _last >= _PAUSE:
        _trim(0)
        _last = time.monotonic()
