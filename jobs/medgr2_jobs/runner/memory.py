"""What a process does with memory that it frees."""

from __future__ import annotations

import contextlib
import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # that glibc takes
_KEPT = 2**30  # bytes


def keep_freed() -> None:
    """Has the process keep up to a GiB of what it frees; for training steps, which free what the next one takes again.

    glibc would give large tensors back to the kernel, step by step, and the kernel hands out cleared pages: a fault for
    each 4 KiB (`make bench NAME=memory` counts them). Other C libraries are left as they are.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
