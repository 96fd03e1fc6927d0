"""The connections of all providers: one HTTP client that trusts no answer, and what errors mean for the money.

No provider's own library stands on top: ours is one POST of JSON, while such libraries take addresses, keys and headers
from environment variables, tell the other side what computer this is, and throw whatever a strange answer makes them.
"""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace
from typing import Annotated, Any, TypeVar

import httpx2
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from medgr2_api.stages.generate import Provider

from ..pricing import TokenUsage
from ..provider_errors import LOST, UNREACHABLE, UNREADABLE, Failure

#: Seconds. An answer may take long, a connection may not. The whole of an answer has the time of one read.
TIMEOUT = httpx2.Timeout(300, connect=10)
#: Bytes of an answer at most, decoded: a hundred times the longest that a model writes.
MAX_BODY = 4 * 1024 * 1024
#: Before these, nothing of the question has left.
_NOT_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
)
_BOM = b"\xef\xbb\xbf"
_DESCRIBES_BODY = (b"content-encoding", b"content-length", b"transfer-encoding")


class BoundedClient(httpx2.AsyncClient):
    """Reads each answer to its end: within `TIMEOUT`, and no more than `MAX_BODY` bytes, however it is encoded."""

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """The answer, with its whole body.

        Raises:
            httpx2.TransportError: there is none, or it did not come in time.
            httpx2.DecodingError: it is too long, or in an encoding that was not asked for.
        """
        request.headers["accept-encoding"] = "identity"
        try:
            async with asyncio.timeout(TIMEOUT.read):
                response = await super().send(request, **{**options, "stream": True})
                try:
                    content = await _body(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise httpx2.ReadTimeout(f"no whole answer within {TIMEOUT.read} s", request=request) from None
        headers = [item for item in response.headers.raw if item[0].lower() not in _DESCRIBES_BODY]
        return httpx2.Response(response.status_code, headers=headers, content=content, request=request)


async def _body(response: httpx2.Response) -> bytes:
    """Not `aread`: it decodes all of what comes in one piece, and a few kilobytes can be gigabytes."""
    encoding = response.headers.get("content-encoding", "").strip().lower() or "identity"
    if encoding not in ("identity", "gzip", "deflate"):
        raise httpx2.DecodingError(f"content-encoding {encoding[:40]!r} was not asked for", request=response.request)
    inflate = None if encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)  # either header
    content = bytearray()
    try:
        async for piece in response.aiter_raw():
            content += inflate.decompress(piece, MAX_BODY + 1 - len(content)) if inflate else piece
            if len(content) > MAX_BODY:
                raise httpx2.DecodingError(f"more than {MAX_BODY} bytes", request=response.request)
    except zlib.error as error:
        raise httpx2.DecodingError(f"{encoding}: {error}", request=response.request) from None
    if inflate and not inflate.eof and content:
        raise httpx2.DecodingError(f"{encoding}: it ends in the middle", request=response.request)
    return bytes(content)


def connections(provider: Provider) -> BoundedClient:
    """A client with a connection for each request in flight. It follows no redirect: that could take an image to
    another site, and it sends nothing twice. A provider on site is asked directly, whatever proxy the environment
    names: that would carry images out of the site."""
    limits = httpx2.Limits(max_connections=provider.concurrency, max_keepalive_connections=provider.concurrency)
    # a transport of its own takes no proxy from the environment, and still the site's own certificates
    direct = None if provider.has_egress else httpx2.AsyncHTTPTransport(limits=limits, trust_env=True)
    return BoundedClient(limits=limits, timeout=TIMEOUT, follow_redirects=False, transport=direct)


def of_error(error: BaseException) -> Failure | None:
    """What an error of the connection means; None: it is none."""
    if isinstance(error, httpx2.TransportError):
        failure = UNREACHABLE if isinstance(error, _NOT_SENT) else LOST
        return replace(failure, error=f"{type(error).__name__}: {error}")
    if isinstance(error, httpx2.DecodingError):
        return replace(UNREADABLE, error=f"the answer cannot be decoded: {error}")
    return None


class AnswerModel(BaseModel):
    """Base of what an answer is read as: nothing is converted, and what nobody asks for is passed over."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True)


def _none_if_wrong(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:
        return None


OPTIONAL = WrapValidator(_none_if_wrong)
Text = Annotated[str | None, OPTIONAL]
"""A field that says something about an answer; None where it is no text: the answer can be read without it."""
TokenCount = Annotated[int | None, Field(ge=0, le=10**9), OPTIONAL]
"""Tokens as a server counts them; None where that is no count."""

A = TypeVar("A", bound=AnswerModel)


def read(model: type[A], response: httpx2.Response) -> A:
    """The JSON of an answer.

    Raises:
        ValueError: it is none, or not of this form; the message says where, and nothing of what stands there.
    """
    try:
        return model.model_validate_json(response.content.removeprefix(_BOM))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:100]
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None


def text_of(response: httpx2.Response) -> str:
    """The beginning of a body that is shown to people."""
    return response.content[:4096].decode("utf-8", "replace")


def usage(text: str, input_tokens: int | None, output_tokens: int | None, thinking_tokens: int) -> TokenUsage | None:
    """The tokens of an answer; None where the server has not counted: no prompt has none, nor has a text."""
    if not input_tokens or output_tokens is None or (text and not output_tokens + thinking_tokens):
        return None
    return TokenUsage(input_tokens, output_tokens, thinking_tokens)
