"""What a provider's failure means: try again, give up this row, or stop the stage. One table for all providers."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC
from enum import StrEnum

from ..store.rows import CandidateOutcome


class Action(StrEnum):
    """What follows a failure."""

    RETRY = "retry"
    SKIP = "skip row"
    STOP = "stop stage"


@dataclass(frozen=True)
class Failure:
    """A request that got no answer."""

    action: Action
    error: str
    """What happened, without secrets."""
    billed: bool = False
    """Whether the provider may charge for it: it is then counted at its worst case."""
    pushback: bool = False
    """Whether fewer requests at a time may help."""
    trouble: bool = False
    """Whether the provider is in trouble, rather than dislikes the question: many in a row are an outage."""
    retry_after: float | None = None
    """Seconds that the provider asks to be left alone."""
    outcome: CandidateOutcome = CandidateOutcome.HTTP_ERROR
    """Of the row, should it end with this failure."""
    at_once: bool = False
    """Retry without waiting, and without counting it: the request was corrected."""


_BUSY = Failure(Action.RETRY, "", pushback=True, trouble=True)
#: A gateway that answers in the place of a server that may have done the work.
_GATEWAY = replace(_BUSY, billed=True)
_BAD = Failure(Action.SKIP, "", outcome=CandidateOutcome.REJECTED)


def _stop(error: str) -> Failure:
    return Failure(Action.STOP, error)


STATUSES: dict[int, Failure] = {
    400: _BAD,
    401: _stop("the server refuses the API key"),
    402: _stop("the account has no credit"),
    403: _stop("the API key may not use this model"),
    404: _stop("the server knows no such model, or no such address (a base URL usually ends in /v1)"),
    405: _stop("this address takes no questions (a base URL usually ends in /v1)"),
    408: _GATEWAY,
    409: _BUSY,
    413: _BAD,
    422: _BAD,
    425: _BUSY,
    429: _BUSY,
    502: _GATEWAY,
    504: _GATEWAY,
    524: _GATEWAY,
}

#: The connection was lost, or nothing came in time, after the question had left.
LOST = Failure(Action.RETRY, "", billed=True, pushback=True, trouble=True)
#: No connection: nothing was sent.
UNREACHABLE = Failure(Action.RETRY, "", pushback=True, trouble=True)
#: An answer that nobody can read has been paid for all the same.
UNREADABLE = Failure(Action.SKIP, "", billed=True, trouble=True, outcome=CandidateOutcome.UNREADABLE)


def of_status(status: int, text: str, headers: Mapping[str, str]) -> Failure:
    """What an HTTP status other than 200 means.

    Args:
        status: the status.
        text: what the server said, without secrets.
        headers: of the response; names in any case.
    """
    found = STATUSES.get(status)
    if found is None and status >= 500:
        found = _BUSY
    elif found is None and status >= 400:
        found = _BAD
    elif found is None:  # followed, a redirect could take an image to another house
        found = _stop("the server sends us elsewhere; give the address that it names, if it is the right one")
    error = f"HTTP {status}: {found.error or text}"
    return replace(found, error=error, retry_after=retry_after(headers))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the header Retry-After asks for, given as seconds or as a date; None: it does not ask.

    `retry-after-ms`, which some OpenAI-compatible servers send, is finer and comes first.
    """
    named = {name.lower(): value for name, value in headers.items()}
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(named.get(name, "")) * unit)
        except ValueError:
            continue
    try:
        date = email.utils.parsedate_to_datetime(named.get("retry-after", ""))
    except (TypeError, ValueError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, date.timestamp() - time.time())
