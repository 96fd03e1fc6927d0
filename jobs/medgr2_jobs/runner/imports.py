"""Importing what takes seconds: torch, transformers and trl are four thousand modules."""

from __future__ import annotations

import gc
import importlib
import sys
from types import ModuleType


def load(name: str) -> ModuleType:
    """Imports a module and all that it needs, without a look for garbage: that is a sixth of the time, and finds none.

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
