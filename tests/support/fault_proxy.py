"""A proxy before a real server: passes questions on, and spoils on demand what comes back. It keeps the accounts."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """What happens to one request."""

    status: int = 0
    """Refused with this status; the server behind is not asked."""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """Seconds before the answer is passed on."""
    drop: str = ""
    """`before`: the connection is lost when the server has answered; `middle`: half of the answer is passed on."""
    content: str | None = None
    """The model's words are replaced by these."""
    finish_reason: str = ""
    """The server's is replaced."""
    body: str | None = None
    """Instead of the whole answer."""


class FaultProxy(ThreadingHTTPServer):
    """`fault(number, body)` decides; `number` counts how often this question, known by its seed, was asked, from 1."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.fault: Callable[[int, dict[str, Any]], Fault] = lambda number, body: Fault()
        self.refusal = b'{"error": {"message": "not now"}}'
        self.lock = threading.Lock()
        self.asked: Counter[int] = Counter()
        self.tokens: dict[int, list[tuple[int, int]]] = {}
        """Tokens in and out of every answer that the server behind has made, by question: what it would charge for."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        body = json.loads(data)
        proxy, seed = self.server, body["seed"]
        with proxy.lock:
            proxy.asked[seed] += 1
            fault = proxy.fault(proxy.asked[seed], body)
        status, answer = (fault.status, proxy.refusal) if fault.status else self._ask(data)
        if status == 200:
            answer = self._account(seed, answer, fault)
        time.sleep(fault.delay)
        if fault.drop != "before":
            self.send_response(status)
            for name, value in {"content-type": "application/json", **fault.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer[: len(answer) // 2] if fault.drop else answer)
        if fault.drop:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _ask(self, data: bytes) -> tuple[int, bytes]:
        request = urllib.request.Request(
            self.server.upstream.removesuffix("/v1") + self.path, data, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def _account(self, seed: int, answer: bytes, fault: Fault) -> bytes:
        document = json.loads(answer)
        usage = document["usage"]
        with self.server.lock:
            tokens = (usage["prompt_tokens"], usage["completion_tokens"])
            self.server.tokens.setdefault(seed, []).append(tokens)
        choice = document["choices"][0]
        if fault.content is not None:
            choice["message"]["content"] = fault.content
        choice["finish_reason"] = fault.finish_reason or choice["finish_reason"]
        return fault.body.encode() if fault.body is not None else json.dumps(document).encode()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def proxying(upstream: str) -> Iterator[FaultProxy]:
    """A running proxy before the server at `upstream`."""
    proxy = FaultProxy(upstream)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
