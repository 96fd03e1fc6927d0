"""The time, as the API server knows it.

Times that are compared come from many clocks: the API server's (deletions), another replica's (the status), ours. So
one counts: the API server's, as it stood in its first answer, and from there the seconds that passed. Ours may be wrong
by hours, or be set while we run, and no deadline notices.

An answer says the second in which it was begun, and comes some time later: by the first one alone the clock is slow by
up to a second and the time of the answer, and what the API server has just written lies in the future. Later answers
make that up: the one that came soonest after a second began is the nearest.
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
        self.seconds = seconds
        self._start: datetime | None = None
        """When `seconds` was 0, at the earliest that fits all answers."""
        self._latest = datetime.max.replace(tzinfo=UTC)
        """And at the latest that fits the first one: an answer by another clock does not move this one."""

    def answered(self, date: str | None, asked: float) -> None:
        """Notes the time of an answer that has come just now.

        Args:
            date: its header `Date`; an answer without one, or with a strange one, tells nothing.
            asked: what `seconds` said before it was asked for.
        """
        try:
            second = parsedate_to_datetime(date or "").astimezone(UTC)
            earliest = second - timedelta(seconds=self.seconds())
            latest = second + timedelta(seconds=1 - asked)
        except (ValueError, OverflowError):
            return
        if self._start is None:
            self._start, self._latest = earliest, latest
        elif self._start < earliest <= self._latest:
            self._start = earliest

    def now(self) -> datetime:
        """The time, in UTC."""
        if self._start is None:
            return datetime.now(UTC)
        return self._start + timedelta(seconds=self.seconds())
