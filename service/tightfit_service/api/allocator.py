"""Tuning of the C allocator for a process that receives uploads."""

from __future__ import annotations

import ctypes

# Numbers of the parameters in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

REUSED_BYTES = 32 << 20
"""Freed memory up to this much is kept for the next message instead of going back to the kernel."""


def reuse_message_buffers() -> bool:
    """Keep the memory of received messages for the next ones; return whether the C library can.

    Each part of an upload passes through several buffers of a megabyte. By default glibc gives such
    blocks back at once, and the kernel hands out zeroed pages for the next part: more work than
    all the copying. The setting is the whole process's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Setting either threshold stops glibc from adapting both, so both are set.
    done = [
        mallopt(ctypes.c_int(name), ctypes.c_int(REUSED_BYTES))
        for name in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)
    ]
    return all(done)
