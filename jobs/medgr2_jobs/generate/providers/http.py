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
    another house, and it sends nothing twice."""

    async def in_time(request: httpx2.Request) -> None:
        request.extensions["timeout"] = TIMEOUT.as_dict()  # libraries on top have their own idea of it

    limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    return httpx2.AsyncClient(
        limits=limits, timeout=TIMEOUT, follow_redirects=False, event_hooks={"request": [in_time]}
    )


def of_error(error: BaseException) -> Failure | None:
    """What an error of the connection means; None: it is none. Libraries wrap it in errors of their own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, httpx2.TransportError):
            found = UNREACHABLE if isinstance(seen, _NOT_SENT) else LOST
            return replace(found, error=f"{type(seen).__name__}: {seen}")
        if isinstance(seen, httpx2.DecodingError):
            return replace(UNREADABLE, error=f"the answer cannot be decoded: {seen}")
        seen = seen.__cause__ or seen.__context__
    return None
