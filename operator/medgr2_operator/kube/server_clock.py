"""The time, as the API server knows it.

Times that are compared come from many clocks: the API server's (deletions), another replica's (the status), ours. So
one counts: the API server's, as it stood in its first answer, and from there the seconds that passed. Ours may be wrong
by hours, or be set while we run, and no deadline notices.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime


def _seconds() -> float:
    """Only forward, and on while the computer sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ServerClock:
    """Tells the time once the API server has answered; before that, the computer's own."""

    def __init__(self, seconds: Callable[[], float] = _seconds) -> None:
        """
        Args:
            seconds: from any moment on; never goes back.
        """
        self._seconds = seconds
        self._start: datetime | None = None
        """When `seconds` was 0."""

    def answered(self, date: str | None) -> None:
        """Notes the time of an answer.

        Args:
            date: its header `Date`; an answer without one, or with a strange one, tells nothing.
        """
        if self._start is None and date:
            try:
                self._start = parsedate_to_datetime(date).astimezone(UTC) - timedelta(seconds=self._seconds())
            except (ValueError, OverflowError):
                return

    def now(self) -> datetime:
        """The time, in UTC."""
        if self._start is None:
            return datetime.now(UTC)
        return self._start + timedelta(seconds=self._seconds())
