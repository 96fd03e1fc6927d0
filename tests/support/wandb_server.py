"""What W&B's client asks of its server for one run: GraphQL, uploads, and the stream of figures."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class WandbServer:
    """What it was told."""

    url: str = ""
    authorizations: set[str | None] = field(default_factory=set)
    buckets: list[dict[str, Any]] = field(default_factory=list)
    """Variables of each `UpsertBucket`: what a run is called, and its settings."""
    history: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    """Everything that was sent."""
    broken: bool = False
    """Fail from now on."""

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "UpsertBucket" in query:
            self.buckets.append(variables)
            project = {"id": "P", "name": variables["project"], "entity": {"id": "E", "name": "team"}}
            bucket = {"id": "B", "name": variables["name"], "displayName": variables["displayName"]}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0, "project": project}, "inserted": True}}
        if "CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/put/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
        return {}

    def stream(self, files: dict[str, Any]) -> None:
        self.history += [json.loads(line) for line in files.get("wandb-history.jsonl", {}).get("content", [])]


@contextmanager
def serving() -> Iterator[WandbServer]:
    """A server on the loopback."""
    told = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            told.bodies.append(body)
            told.authorizations.add(self.headers.get("Authorization"))
            answer: dict[str, Any] = {}
            if not told.broken and self.path == "/graphql":
                asked = json.loads(body)
                answer = {"data": told.graphql(asked["query"], asked.get("variables") or {})}
            elif not told.broken and self.path.endswith("/file_stream"):
                told.stream(json.loads(body).get("files") or {})
            content = json.dumps(answer).encode()
            self.send_response(500 if told.broken else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_PUT(self) -> None:
            told.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Not on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
