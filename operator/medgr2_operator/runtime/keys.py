"""What the queue holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class CycleKey:
    """Which cycle."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
