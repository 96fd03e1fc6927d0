"""A loopback server that speaks OpenAI's chat completions: answers what a test wants, writes down what it is asked."""

from __future__ import annotations

import json
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


@dataclass
class Answer:
    """What the server says to one request."""

    content: str | None = field(default_factory=lambda: json.dumps(TRIPLET))
    finish_reason: str = "stop"
    refusal: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    """Instead of a chat completion."""
    delay: float = 0.0


def retry(status: int, after: str = "0.01") -> Answer:
    """A failure that may pass soon."""
    return Answer(status=status, headers={"retry-after": after}, body='{"error": {"message": "not now"}}')


@dataclass
class Ledger:
    """What the server saw. A question is known by its sampling seed, which is its own."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    authorizations: set[str] = field(default_factory=set)
    asked: Counter[int] = field(default_factory=Counter)
    answered: Counter[int] = field(default_factory=Counter)
    now: int = 0
    most: int = 0


class ChatServer(ThreadingHTTPServer):
    """The server; `answer(number, body)` decides, `number` counts how often this question was asked, from 1."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: Callable[[int, dict[str, Any]], Answer] = lambda number, body: Answer()
        self.ledger = Ledger()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        ledger, seed = self.server.ledger, body["seed"]
        with self.server.lock:
            ledger.requests.append({"path": self.path, **body})
            ledger.authorizations.add(self.headers.get("authorization", ""))
            ledger.asked[seed] += 1
            ledger.now += 1
            ledger.most = max(ledger.most, ledger.now)
            answer = self.server.answer(ledger.asked[seed], body)
        time.sleep(answer.delay)
        with self.server.lock:
            ledger.now -= 1
        text = answer.body if answer.body is not None else json.dumps(_completion(body, answer))
        try:
            self.send_response(answer.status)
            for name, value in {"content-type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:  # the client is gone
            return
        with self.server.lock:
            ledger.answered[seed] += 1

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _completion(body: dict[str, Any], answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.content, "refusal": answer.refusal}
    return {
        "id": "chat-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
    }


@contextmanager
def serving() -> Iterator[ChatServer]:
    """A running server."""
    server = ChatServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
