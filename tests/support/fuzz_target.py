"""What a target of fuzzing is.

A case ends in one word: what was read, or how it was refused by one of the errors that the caller expects. Any other
exception is a fault of ours.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Case = Callable[[random.Random], str]
"""Makes and runs one case: how it ended, in a word. Raises what nobody expects."""

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Target:
    """One thing that reads."""

    name: str
    share: float
    """Of all cases."""
    prepare: Callable[[Path], Case]
    """Given an empty folder."""
