"""What makes small runs on a few cores quicker: imports, and memory that is freed. A GPU's stages use none of it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import sys
from types import ModuleType

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # that glibc takes
_KEPT = 2**30  # bytes


def load(name: str) -> ModuleType:
    """Imports a module and all that it needs, without a look for garbage; for the forkserver.

    torch, transformers and trl are four thousand modules: the look is a sixth of the time, and finds none.

    What is there afterwards stays for good, so the collector never looks at it again. That keeps it also from touching,
    and so copying, pages that forked processes share.

    Raises:
        ImportError: as `importlib.import_module`.
    """
    if name in sys.modules:
        return sys.modules[name]
    collects = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        if collects:
            gc.enable()
        gc.freeze()


def keep_freed_memory() -> None:
    """Has the process keep up to a GiB of what it frees; for training steps, which free what the next one takes again.

    glibc would give large tensors back to the kernel, step by step, and the kernel hands out cleared pages: a fault for
    each 4 KiB (`make bench NAME=memory` counts them). Other C libraries are left as they are.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
