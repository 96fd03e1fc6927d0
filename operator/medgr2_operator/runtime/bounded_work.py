"""What the work on one cycle may take, so that it can fail only that cycle.

Computing is done in threads, beside the event loop that renews the Lease. A cycle whose work takes too long, or ended
the process, is set back: tried again after a time that doubles, while all others go on.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from .workqueue import CycleKey

_log = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds that computing for one cycle may take; it takes milliseconds.
COMPUTE_SECONDS = 20.0
#: Seconds until a cycle that was set back is tried again, the first time and at most.
FIRST_DELAY, MAX_DELAY = 30.0, 3600.0


class TooSlowError(Exception):
    """Computing took longer than it may."""


async def compute(work: Callable[[], T], seconds: float = COMPUTE_SECONDS) -> T:
    """Calls `work` in a thread of its own. One that takes too long is abandoned: a thread cannot be stopped.

    Raises:
        TooSlowError: it took longer than `seconds`.
    """
    loop, context = asyncio.get_running_loop(), contextvars.copy_context()
    done: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return  # nobody waits any more
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = context.run(work)
        except Exception as error:
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, result, failure)

    # not asyncio.to_thread: what is abandoned there takes a thread away from all others, and holds up the process' end
    threading.Thread(target=run, daemon=True).start()
    try:
        return await asyncio.wait_for(done, seconds)
    except TimeoutError:
        raise TooSlowError(f"took longer than {seconds:g} s") from None


class Setbacks:
    """Which cycles are set back. Notes on the disk what is being worked on: what a process leaves there ended it.

    The disk is the pod's: another replica that takes over learns of a cycle by one end of its own, and each of its
    further ends doubles the time. So a cycle ends at most one process more per replica, and the status needs no count.
    """

    def __init__(self, folder: Path | None, now: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            folder: outlives the process, not the pod; None: nothing is remembered when the process ends.
            now: seconds by any clock that only goes forward.
        """
        self._folder, self._now = folder, now
        self._ends: dict[CycleKey, int] = {}
        self._until: dict[CycleKey, float] = {}
        self._why: dict[CycleKey, str] = {}
        for key, ends in self._left_behind():
            self._add(key, ends, "the operator's process ended while it worked on this cycle")

    def left(self, key: CycleKey) -> float:
        """Seconds until the cycle may be worked on; 0: now."""
        return max(0.0, self._until.get(key, 0.0) - self._now())

    def why(self, key: CycleKey) -> str:
        """Why it is set back."""
        return self._why.get(key, "")

    def forget(self, key: CycleKey) -> None:
        """It went well, or the cycle is gone."""
        for known in (self._ends, self._until, self._why):
            known.pop(key, None)
        self._write(key, None)

    def working_on(self, key: CycleKey) -> AbstractContextManager[None]:
        """Notes that the cycle is worked on while the block runs; one that ends well is no longer set back."""
        return _Work(self, key)

    def begin(self, key: CycleKey) -> None:
        """Work on the cycle begins."""
        self._write(key, {"ends": self._ends.get(key, 0), "working": True})

    def end(self, key: CycleKey, error: BaseException | None) -> None:
        """Work on the cycle has ended, with this error or well."""
        if isinstance(error, TooSlowError):
            self._add(key, self._ends.get(key, 0) + 1, "the work on this cycle took too long")
        elif error is not None:
            self._write(key, None if key not in self._ends else {"ends": self._ends[key], "working": False})
        else:
            self.forget(key)

    def _add(self, key: CycleKey, ends: int, why: str) -> None:
        delay = min(MAX_DELAY, FIRST_DELAY * 2 ** min(ends - 1, 16))
        self._ends[key], self._until[key] = ends, self._now() + delay
        self._why[key] = f"{why} ({ends} times in a row)" if ends > 1 else why
        self._write(key, {"ends": ends, "working": False})
        _log.warning("%s: %s; next try in %.0f s", key, self._why[key], delay)

    def _left_behind(self) -> Iterator[tuple[CycleKey, int]]:
        """What the process before this one worked on or had set back, with how often that went wrong."""
        for file in [] if self._folder is None else sorted(self._folder.glob("*.json")):
            try:
                note = json.loads(file.read_text())
                yield CycleKey(note["namespace"], note["name"]), int(note["ends"]) + bool(note["working"])
            except (OSError, ValueError, KeyError, TypeError):
                file.unlink(missing_ok=True)  # half written: the process ended before any work began

    def _write(self, key: CycleKey, note: dict[str, object] | None) -> None:
        if self._folder is None:
            return
        file = self._folder / f"{hashlib.sha256(str(key).encode()).hexdigest()[:32]}.json"
        try:
            if note is None:
                file.unlink(missing_ok=True)
            else:
                file.write_text(json.dumps({"namespace": key.namespace, "name": key.name, **note}))
        except OSError as error:
            _log.warning("%s: what is worked on cannot be noted: %s", key, error)


class _Work(AbstractContextManager[None]):
    """One piece of work on a cycle. No generator: one that the process leaves behind would be closed when that ends,
    which reads as an error of the work."""

    def __init__(self, setbacks: Setbacks, key: CycleKey) -> None:
        self._setbacks, self._key = setbacks, key

    def __enter__(self) -> None:
        self._setbacks.begin(self._key)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._setbacks.end(self._key, error)
