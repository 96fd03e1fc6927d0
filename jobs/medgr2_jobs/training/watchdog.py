"""Finds out that a training has stopped making steps: a collective operation or a server that never answers."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

from ..errors import Stalled
from ..runner.ending import end_process


class Watchdog:
    """A thread that ends the process when nobody calls `beat` for too long. (The main one cannot: it is what hangs.)"""

    def __init__(
        self,
        phase: str,
        seconds: float,
        usage: dict[str, float],
        end: Callable[[Stalled, dict[str, float]], None] = end_process,
    ) -> None:
        """
        Args:
            phase: what is watched, for the message.
            seconds: longest time between two beats.
            usage: what the attempt has cost so far, reported with its end.
            end: ends the process.
        """
        self._phase, self._seconds, self._usage, self._end = phase, seconds, usage, end
        self._last = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def beat(self) -> None:
        """Something was done."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(max(0.05, self._last + self._seconds - time.monotonic())):
            silent = time.monotonic() - self._last
            if silent < self._seconds:
                continue
            sys.stderr.flush()
            faulthandler.dump_traceback(file=2, all_threads=True)
            self._end(
                Stalled(
                    f"{self._phase}: no step has ended for {silent:.0f} s (failurePolicy.stallSeconds is "
                    f"{self._seconds:g}); the log has what each thread was doing. If a step is that long, raise it"
                ),
                self._usage,
            )
            return
