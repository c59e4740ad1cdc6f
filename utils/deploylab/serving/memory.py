"""Lets the system have back at once what large pictures took.

A picture of 40 million pixels takes hundreds of megabytes for a moment. glibc maps a large block by itself and unmaps
it when it is freed, but after the first time it takes the next of that size from the heap of the thread that asks,
where it stays (mallopt(3), "dynamic mmap threshold"). A server of many threads would stay as large as each once was.
"""

from __future__ import annotations

import ctypes
import sys

LARGE_BYTES = 4 << 20
"""Blocks from here on are always mapped: a photograph of 640 x 480 pixels is smaller, and need not pay for it."""

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def unmap_large_blocks() -> bool:
    """Set that for this process. False where the C library is another than glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and bool(
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES) and mallopt(_M_TRIM_THRESHOLD, 2 * LARGE_BYTES)
    )
