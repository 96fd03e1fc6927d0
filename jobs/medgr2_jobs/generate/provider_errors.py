"""What a provider's failure means: retry, skip the row, or stop the stage. One table for all providers."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC
from enum import StrEnum

from ..store.rows.candidates import CandidateOutcome


class FailureAction(StrEnum):
    """What a failure leads to."""

    RETRY = "retry"
    SKIP = "skip row"
    STOP = "stop stage"


@dataclass(frozen=True)
class Failure:
    """Why a request got no answer, and what follows."""

    action: FailureAction
    error: str
    """What happened, without secrets."""
    billed: bool = False
    """Whether the provider may charge for it: it is then counted at its worst case."""
    throttled: bool = False
    """Whether fewer concurrent requests may help."""
    server_fault: bool = False
    """Whether the server failed, rather than refused the question: many in a row are an outage."""
    retry_after: float | None = None
    """Seconds from the header Retry-After, or its like."""
    outcome: CandidateOutcome = CandidateOutcome.HTTP_ERROR
    """Of the row, should it end with this failure."""
    retry_immediately: bool = False
    """Retry without back-off, and without counting it: the request was corrected."""


_BUSY = Failure(FailureAction.RETRY, "", throttled=True, server_fault=True)
#: A gateway that answers in the place of a server that may have done the work.
_GATEWAY = replace(_BUSY, billed=True)
_BAD_REQUEST = Failure(FailureAction.SKIP, "", outcome=CandidateOutcome.REJECTED)


def _stop(error: str) -> Failure:
    return Failure(FailureAction.STOP, error)


STATUSES: dict[int, Failure] = {
    400: _BAD_REQUEST,
    401: _stop("the server refuses the API key"),
    402: _stop("the account has no credit"),
    403: _stop("the API key may not use this model"),
    404: _stop("the server knows no such model, or no such address (a base URL usually ends in /v1)"),
    405: _stop("this address takes no questions (a base URL usually ends in /v1)"),
    408: _GATEWAY,
    409: _BUSY,
    413: _BAD_REQUEST,
    422: _BAD_REQUEST,
    425: _BUSY,
    429: _BUSY,
    502: _GATEWAY,
    504: _GATEWAY,
    524: _GATEWAY,
}

#: The connection was lost, or nothing came in time, after the question had left.
LOST = Failure(FailureAction.RETRY, "", billed=True, throttled=True, server_fault=True)
#: No connection: nothing was sent.
UNREACHABLE = Failure(FailureAction.RETRY, "", throttled=True, server_fault=True)
#: An answer that nobody can read has been paid for all the same.
UNREADABLE = Failure(FailureAction.SKIP, "", billed=True, server_fault=True, outcome=CandidateOutcome.UNREADABLE)


def of_status(status: int, text: str, headers: Mapping[str, str]) -> Failure:
    """What an HTTP status other than 200 means.

    Args:
        status: the status.
        text: what the server said, without secrets.
        headers: of the response; names in any case.
    """
    failure = STATUSES.get(status)
    if failure is None and status >= 500:
        failure = _BUSY
    elif failure is None and status >= 400:
        failure = _BAD_REQUEST
    elif failure is None:  # a redirect that is followed could take an image to another operator's server
        failure = _stop("the server sends us elsewhere; give the address that it names, if it is the right one")
    error = f"HTTP {status}: {failure.error or text}"
    return replace(failure, error=error, retry_after=retry_after(headers))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the header Retry-After asks for, given as seconds or as a date; None: it does not ask.

    `retry-after-ms`, which some OpenAI-compatible servers send, is finer and comes first.
    """
    values = {name.lower(): value for name, value in headers.items()}
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        given = seconds(values.get(name, ""))
        if given is not None:
            return given * unit
    try:
        date = email.utils.parsedate_to_datetime(values.get("retry-after", ""))
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        return max(0.0, date.timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def seconds(text: str) -> float | None:
    """A number of seconds that a server gives; None: it is no such number."""
    return max(0.0, float(text)) if _SECONDS.fullmatch(text.strip()) else None


_SECONDS = re.compile(r"-?[0-9]{1,12}(\.[0-9]{0,12})?")
