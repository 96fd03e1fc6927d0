"""The connections of all providers: one HTTP client, and what its errors mean for the money."""

from __future__ import annotations

from dataclasses import replace

import httpx2

from ..provider_errors import LOST, UNREACHABLE, UNREADABLE, Failure

#: Seconds. An answer may take long, a connection may not.
TIMEOUT = httpx2.Timeout(300, connect=10)
#: Before these, nothing of the question has left.
_NOT_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
)


def connections(concurrency: int) -> httpx2.AsyncClient:
    """A client with a connection for each request in flight. It follows no redirect: that could take an image to
    another site, and it sends nothing twice."""

    async def in_time(request: httpx2.Request) -> None:
        request.extensions["timeout"] = TIMEOUT.as_dict()  # libraries on top have their own idea of it

    limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    return httpx2.AsyncClient(
        limits=limits, timeout=TIMEOUT, follow_redirects=False, event_hooks={"request": [in_time]}
    )


def of_error(error: BaseException) -> Failure | None:
    """What an error of the connection means; None: it is none. Libraries wrap it in errors of their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, httpx2.TransportError):
            failure = UNREACHABLE if isinstance(cause, _NOT_SENT) else LOST
            return replace(failure, error=f"{type(cause).__name__}: {cause}")
        if isinstance(cause, httpx2.DecodingError):
            return replace(UNREADABLE, error=f"the answer cannot be decoded: {cause}")
        cause = cause.__cause__ or cause.__context__
    return None
