"""Answers that no provider should give, and some that they do: drawn from a seed, sent as they are."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.support.chat_server import Answer, ChatServer, GeminiServer

#: Values that stand where others are expected.
NASTY: list[Any] = [
    None, True, 0, -1, -(10**20), 10**30, 1.5, float("nan"), float("inf"), "", "a", "100", "\x00", "\ud800", "\u202e",
    "</answer>", [], {}, [[]], [None], {"a": 1}, [{"type": "text", "text": "{}"}], ["x", 1], {"0": {}}, "A" * 5000,
]  # fmt: skip
HEADERS: list[tuple[str, str]] = [
    ("retry-after", value)
    for value in ("nan", "inf", "-5", "1e999", "1_0", "٣", "", "soon", "Wed, 99 Foo 20000 99:99:99 GMT", "9" * 400,
                  "Mon, 01 Jan 0001 00:00:00 -2359", "0.0", "\x01")
] + [
    ("content-type", "text/html; charset=nonsense"), ("content-type", ""), ("content-encoding", "br"),
    ("content-encoding", "gzip"), ("content-encoding", "gzip, gzip"), ("content-encoding", "zstd"),
    ("content-length", "3"), ("content-length", "99999999999"), ("content-length", "-1"), ("content-length", "x"),
    ("transfer-encoding", "chunked"), ("set-cookie", "a=b; expires=99999999999999; domain=.."), ("location", "http://[::1"),
    ("x", "y" * 9000), ("retry-after-ms", "nan"),
]  # fmt: skip
STATUSES = [200] * 24 + [
    201,
    204,
    206,
    226,
    301,
    304,
    307,
    400,
    401,
    404,
    408,
    413,
    418,
    429,
    500,
    502,
    503,
    524,
    599,
    999,
]


def raw_answer(rng: random.Random, server: type[ChatServer]) -> bytes:
    """The bytes of one HTTP response, some of them none."""
    document: Any = server.completion({"model": "m"}, Answer(usage=None))
    for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
        document = _changed(document, rng)
    try:
        body = json.dumps(document).encode()
    except (UnicodeEncodeError, RecursionError):
        body = b"{}"
    body = rng.choice(_BODIES)(body, rng)
    status = rng.choice(STATUSES)
    headers = [("content-type", "application/json"), ("connection", "close")]
    if rng.random() < 0.8:
        headers.append(("content-length", str(len(body))))
    if rng.random() < 0.15:
        encode = rng.choice([gzip.compress, zlib.compress])
        body = encode(body)
        headers = [pair for pair in headers if pair[0] != "content-length"]
        headers.append(("content-encoding", "gzip" if encode is gzip.compress else "deflate"))
        body = body if rng.random() < 0.7 else body[: len(body) // 2]
    headers += rng.sample(HEADERS, rng.choice([0, 0, 0, 1, 2]))
    head = f"HTTP/1.1 {status} said\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
    sent = head.encode() + body
    return sent if rng.random() < 0.97 else rng.choice([b"", b"\r\n", b"HTTP/9 ", sent[: len(head) // 2], body])


def _changed(node: Any, rng: random.Random) -> Any:
    """The document with another value in one place, or one taken out of it."""
    if isinstance(node, dict) and node and rng.random() < 0.9:
        name = rng.choice(sorted(node))
        if rng.random() < 0.1:
            return {key: value for key, value in node.items() if key != name}
        return {**node, name: _changed(node[name], rng)}
    if isinstance(node, list) and node and rng.random() < 0.9:
        at = rng.randrange(len(node))
        return [*node[:at], _changed(node[at], rng), *node[at + 1 :]]
    return rng.choice([*NASTY, [node], {"value": node}, [node, node]])


def _flip(body: bytes, rng: random.Random) -> bytes:
    if not body:
        return body
    at = rng.randrange(len(body))
    return body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :]


def _twice(body: bytes, rng: random.Random) -> bytes:
    """The same name twice in one object."""
    return body.replace(b'"content"', b'"content": "another", "content"', 1)


_BODIES: list[Callable[[bytes, random.Random], bytes]] = [
    *[lambda body, rng: body] * 12,
    _flip,
    _flip,
    _twice,
    lambda body, rng: body[: rng.randrange(len(body) + 1)],
    lambda body, rng: b"\xef\xbb\xbf" + body,
    lambda body, rng: body.decode().encode("utf-16"),
    lambda body, rng: body + b"\n" + body,
    lambda body, rng: b"data: " + body + b"\n\ndata: [DONE]\n\n",
    lambda body, rng: b"<html><body>502 Bad Gateway</body></html>",
    lambda body, rng: b"[" * rng.choice([100, 100_000]) + b"]" * 10,
    lambda body, rng: b'{"a":' * 50_000,
    lambda body, rng: b'{"choices":' + b"9" * 6000 + b"}",
    lambda body, rng: rng.randbytes(rng.choice([1, 100, 70_000])),
    lambda body, rng: body.replace(b'"choices"', b'"choices": {"0": 1}, "x"'),
    lambda body, rng: body.replace(b"50", b"NaN").replace(b"100", b"Infinity"),
    lambda body, rng: b'"\\ud800"',
    lambda body, rng: b"",
]


@asynccontextmanager
async def answering(next_answer: Callable[[], bytes]) -> AsyncIterator[str]:
    """A port that reads a request and sends these bytes, one answer a connection; yields its address."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            writer.write(next_answer())
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):  # the client has heard enough
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=256)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


DIALECTS: dict[str, type[ChatServer]] = {"openAI": ChatServer, "gemini": GeminiServer}
