"""For how long something has been so, as far as this process has seen it: by no clock that others set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from .workqueue import CycleKey


class FirstSeen:
    """Facts of cycles, and since when each has been so without a break."""

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._since: dict[CycleKey, dict[str, float]] = {}

    def update(self, key: CycleKey, facts: Iterable[str]) -> Mapping[str, float]:
        """Takes note of what is so now; returns for how many seconds each has been."""
        now, before = self._seconds(), self._since.get(key, {})
        since = {fact: before.get(fact, now) for fact in facts}
        self._since[key] = since
        if not since:
            del self._since[key]
        return {fact: now - first for fact, first in since.items()}

    def forget(self, key: CycleKey) -> None:
        """There is no such cycle any more."""
        self._since.pop(key, None)
