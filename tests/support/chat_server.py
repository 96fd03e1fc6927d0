"""Loopback servers that speak a provider's protocol: they answer what a test wants, and write down what they are asked.

`ChatServer` speaks OpenAI's chat completions, `GeminiServer` Gemini's generateContent, `DescribeServer` the protocol of
the example plugin. All keep a ledger of their own: what they would have charged for.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TRIPLET: dict[str, Any] = {
    "question": "Which finding is shown?",
    "question_type": "Diagnosis",
    "options": ["nodule", "cyst", "mass", "plaque"],
    "answer_letter": "B",
    "answer_text": "cyst",
    "rationale": "A round lucency with a thin wall.",
    "image_findings": ["round lucency"],
    "self_check": "No solid part.",
}
#: Tokens of every answer, as every server counts them: in, out, of these thinking.
TOKENS_IN, TOKENS_OUT = 100, 50


@dataclass
class Answer:
    """What the server says to one request."""

    content: str | None = field(default_factory=lambda: json.dumps(TRIPLET))
    finish_reason: str = "stop"
    refusal: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    """Instead of a completion."""
    delay: float = 0.0
    usage: dict[str, Any] | None = None
    """Instead of the usual tokens; {}: none are told."""
    drop: str = ""
    """`before`: the connection is lost before anything is answered; `middle`: in the middle of the body."""


def retry(status: int, after: str = "0.01") -> Answer:
    """A failure that may pass soon; `after`: the header Retry-After, empty for none."""
    headers = {"retry-after": after} if after else {}
    return Answer(status=status, headers=headers, body='{"error": {"message": "not now"}}')


@dataclass
class Ledger:
    """What the server saw. A question is known by its sampling seed, which is its own."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    authorizations: set[str] = field(default_factory=set)
    asked: Counter[int] = field(default_factory=Counter)
    answered: Counter[int] = field(default_factory=Counter)
    """Whole answers of any status that left."""
    charged: Counter[int] = field(default_factory=Counter)
    """Answers of status 200 that were made, whether or not they arrived: these cost money."""
    now: int = 0
    most: int = 0


class ChatServer(ThreadingHTTPServer):
    """The server; `answer(number, body)` decides, `number` counts how often this question was asked, from 1."""

    daemon_threads = True
    request_queue_size = 128
    path = "/v1"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: Callable[[int, dict[str, Any]], Answer] = lambda number, body: Answer()
        self.ledger = Ledger()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet: clients that are killed break their connections."""

    @staticmethod
    def seed(body: dict[str, Any]) -> int:
        return body["seed"]

    @staticmethod
    def key(headers: Any) -> str:
        return headers.get("authorization", "")

    @staticmethod
    def completion(body: dict[str, Any], answer: Answer) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.content, "refusal": answer.refusal}
        made = {
            "id": "chat-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}],
            "usage": {
                "prompt_tokens": TOKENS_IN,
                "completion_tokens": TOKENS_OUT,
                "total_tokens": TOKENS_IN + TOKENS_OUT,
            },
        }
        if answer.usage is not None:
            made["usage"] = answer.usage or None
        return made


class GeminiServer(ChatServer):
    """The same with Gemini's words. `finish_reason` is Gemini's; `refusal` is the reason why the prompt was blocked;
    `content` None: no candidate."""

    path = ""

    @staticmethod
    def seed(body: dict[str, Any]) -> int:
        return body["generationConfig"]["seed"]

    @staticmethod
    def key(headers: Any) -> str:
        return headers.get("x-goog-api-key", "")

    @staticmethod
    def completion(body: dict[str, Any], answer: Answer) -> dict[str, Any]:
        usage = {"promptTokenCount": TOKENS_IN, "candidatesTokenCount": TOKENS_OUT - 20, "thoughtsTokenCount": 20}
        made: dict[str, Any] = {"usageMetadata": usage, "modelVersion": "loopback"}
        if answer.usage is not None:
            made["usageMetadata"] = answer.usage
        if answer.refusal:
            made["promptFeedback"] = {"blockReason": answer.refusal}
        elif answer.content is not None:
            reason = {"stop": "STOP"}.get(answer.finish_reason, answer.finish_reason)
            parts = [{"text": answer.content}] if answer.content else []
            thought = [{"text": "hidden thought", "thought": True}]
            made["candidates"] = [{"content": {"role": "model", "parts": thought + parts}, "finishReason": reason}]
        return made


class DescribeServer(ChatServer):
    """What `medgr2_example_plugin.provider` speaks; `usage` {}: tokens are not told."""

    path = ""

    @staticmethod
    def completion(body: dict[str, Any], answer: Answer) -> dict[str, Any]:
        tokens = {"in": TOKENS_IN, "out": TOKENS_OUT} if answer.usage is None else answer.usage
        return {"text": answer.content, "tokens": tokens}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        body = json.loads(data)
        server, ledger = self.server, self.server.ledger
        seed = server.seed(body)
        with server.lock:
            ledger.requests.append({"path": self.path, **body})
            ledger.bodies.append(data)
            ledger.authorizations.add(server.key(self.headers))
            ledger.asked[seed] += 1
            ledger.now += 1
            ledger.most = max(ledger.most, ledger.now)
            answer = server.answer(ledger.asked[seed], body)
        time.sleep(answer.delay)
        with server.lock:
            ledger.now -= 1
            ledger.charged[seed] += answer.status == 200
        try:
            self._send(answer, body)
        except OSError:  # the client is gone
            return
        with server.lock:
            ledger.answered[seed] += not answer.drop

    def _send(self, answer: Answer, body: dict[str, Any]) -> None:
        text = answer.body if answer.body is not None else json.dumps(self.server.completion(body, answer))
        data = text.encode()
        if answer.drop != "before":
            self.send_response(answer.status)
            for name, value in {"content-type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if answer.drop else data)
        if answer.drop:
            self.close_connection = True
            # a reset, not an orderly end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serving(kind: type[ChatServer] = ChatServer) -> Iterator[ChatServer]:
    """A running server."""
    server = kind()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
