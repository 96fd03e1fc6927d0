"""Fuzzed: what providers answer."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.fuzz_target import Case, Target
from tests.support.mutations import damaged_bytes, damaged_json


class _Echo:
    """A server on loopback that answers each request with what the case put there; a connection a request."""

    def __init__(self) -> None:
        self.response = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                try:
                    self._answer(connection)
                except OSError:  # the client had enough
                    continue

    def _answer(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (piece := connection.recv(65536)):
                return
            head += piece
        head, _, body = head.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < length and (piece := connection.recv(65536)):
            body += piece
        connection.sendall(self.response)


def _http(rng: random.Random, body: bytes) -> bytes:
    status = (
        200
        if rng.random() < 0.7
        else rng.choice((201, 204, 206, 304, 400, 401, 403, 404, 413, 429, 500, 502, 503, 599, 999))
    )
    kind = (
        "application/json"
        if rng.random() < 0.8
        else rng.choice(("text/html", "text/event-stream", "", "x", "application/json; charset=utf-7"))
    )
    head = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
    if rng.random() < 0.2:
        after = rng.choice(("0", "0.01", "-1", "x", "NaN", "Wed, 21 Oct 2015 07:28:00 GMT", "", "1e-9"))
        head.append(f"{rng.choice(('Retry-After', 'Content-Encoding', 'Transfer-Encoding', 'Location'))}: {after}")
    raw = "\r\n".join(head).encode() + b"\r\n\r\n" + body
    return damaged_bytes(rng, raw) if rng.random() < 0.1 else raw


def _client(kind: str, made: dict[str, Any]) -> Callable[[Path], Case]:
    def prepare(_: Path) -> Case:
        from medgr2_api.generator import Sampling
        from medgr2_api.stages.generate import Provider
        from medgr2_jobs.generate.providers.base import ImageQuestion, ProviderAccess
        from medgr2_jobs.generate.providers.gemini_client import GeminiClient
        from medgr2_jobs.generate.providers.openai_client import OpenAIClient
        from tests.support.generate_fixtures import drawn_image

        echo = _Echo()
        loop = asyncio.new_event_loop()
        os.environ["NO_PROXY"] = "127.0.0.1"
        provider = Provider.model_validate(
            {"kind": kind, "model": "m", "baseUrl": echo.url, "apiKeySecretRef": {"name": "s", "key": "k"}}
        )
        access = ProviderAccess(provider, "key", Sampling())

        client = {"openAI": OpenAIClient, "gemini": GeminiClient}[kind](access)  # one for all: it must survive them

        question = ImageQuestion("What?", drawn_image(), seed=1)

        async def ask() -> str:
            reply = await client.ask(question)
            json.dumps(reply.text).encode()
            reply.error.encode()
            return str(reply.failure.outcome if reply.failure else reply.outcome)

        def case(rng: random.Random) -> str:
            echo.response = _http(rng, damaged_json(rng, made))
            return loop.run_until_complete(ask())

        return case

    return prepare


def _openai() -> dict[str, Any]:
    from tests.support.chat_server import Answer, ChatServer

    return ChatServer.completion({"model": "m"}, Answer())


def _gemini() -> dict[str, Any]:
    from tests.support.chat_server import Answer, GeminiServer

    return GeminiServer.completion({}, Answer())


TARGETS = (
    Target("OpenAI", 0.05, _client("openAI", _openai())),
    Target("Gemini", 0.05, _client("gemini", _gemini())),
)
