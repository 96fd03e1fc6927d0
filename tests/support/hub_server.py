"""A loopback server that speaks the Hugging Face hub's protocol to huggingface_hub: info, tree, resolve, LFS elsewhere.

Repositories are git-like: commits with files, branches that point to commits. Large files are answered by a redirect to
another host (`localhost` instead of `127.0.0.1`), as the hub's are; that host must not see the token.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]
_LFS = 10_000  # bytes from which on a file is one of LFS
_PAGE = 3  # entries of a tree on one page, so that there are several


@dataclass
class Repository:
    """One repository; `access` is open, private or gated."""

    kind: str
    name: str
    access: str = "open"
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, branch: str = "main") -> str:
        """Adds a commit; the branch moves on to it."""
        content = {path: hashlib.sha1(data).hexdigest() for path, data in files.items()}
        sha = hashlib.sha1(json.dumps([len(self.commits), content]).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha


@dataclass
class HubFault:
    """What goes wrong with one request."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    after: int | None = None
    """The connection breaks after so many bytes of the body; the client is told the whole length."""
    hang: bool = False
    """With `after`: instead of breaking, nothing comes any more until `HubServer.release` is set."""
    spoil: bool = False
    """The bytes that are sent are other ones."""


class HubServer(ThreadingHTTPServer):
    """The server. `fault(method, path)` says what goes wrong; `requests` is what it was asked, in order."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.token = "hub-token-of-the-test"
        self.fault: Callable[[str, str], HubFault | None] = lambda method, path: None
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.authorizations: set[str] = set()
        self.hanging = threading.Event()
        self.release = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def repository(self, name: str, files: Files, *, kind: str = "model", access: str = "open") -> Repository:
        """A new repository with one commit."""
        repository = Repository(kind, name, access)
        repository.commit(files)
        self.repositories[kind, name] = repository
        return repository

    def handle_error(self, *_: object) -> None:
        """Quiet: clients are killed on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        self._body = body
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("authorization", "")
        with self.server.lock:
            self.server.requests.append(f"{self.command} {path}")
            self.server.authorizations.add(authorization)
            if "range" in self.headers:
                self.server.ranges.append(self.headers["range"])
            self._fault = self.server.fault(self.command, path) or HubFault()
        if self._fault.status:
            self._send(self._fault.status, b'{"error": "as the test wants"}', self._fault.headers)
        elif path.startswith("/cdn/"):
            self._cdn(path.removeprefix("/cdn/"), authorization)
        elif authorization and authorization != f"Bearer {self.server.token}":
            self._error(401, "", "Invalid credentials in Authorization header")
        elif path.startswith("/api/resolve-cache/"):
            self._resolve_cache(path)
        elif path.startswith("/api/"):
            self._api(path)
        else:
            self._resolve(path)

    def _api(self, path: str) -> None:
        """/api/models/org/name[/revision/R] and /api/models/org/name/tree/R."""
        _, _, kinds, org, name, *rest = path.split("/")
        repository = self._repository(kinds.removesuffix("s"), f"{org}/{name}")
        if repository is None:
            return
        revision = rest[1] if len(rest) > 1 else "main"
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        files = repository.commits[sha]
        if rest and rest[0] == "tree":
            self._tree(path, files)
            return
        siblings = [{"rfilename": name} for name in sorted(files)]
        information = {"_id": "1", "id": repository.name, "sha": sha, "private": False, "siblings": siblings}
        self._send(200, json.dumps(information).encode())

    def _tree(self, path: str, files: Files) -> None:
        """One page of a recursive listing; folders are entries too."""
        folders = {"/".join(name.split("/")[:depth]) for name in files for depth in range(1, name.count("/") + 1)}
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(folders)]
        entries += [_entry(name, data) for name, data in sorted(files.items())]
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        more = start + _PAGE < len(entries)
        link = {"Link": f'<{self.server.url}{path}?recursive=true&cursor={start + _PAGE}>; rel="next"'} if more else {}
        self._send(200, json.dumps(entries[start : start + _PAGE]).encode(), link)

    def _resolve(self, path: str) -> None:
        """[/datasets]/org/name/resolve/R/file: headers tell the content; where it lies is another place."""
        kind = "dataset" if path.startswith("/datasets/") else "model"
        org, name, _, revision, *rest = path.removeprefix("/datasets").lstrip("/").split("/")
        repository = self._repository(kind, f"{org}/{name}")
        if repository is None:
            return
        if repository.access == "gated":
            self._error(403 if "authorization" in self.headers else 401, "GatedRepo", "Access is restricted.")
            return
        sha, file = repository.branches.get(revision, revision), "/".join(rest)
        data = repository.commits.get(sha, {}).get(file)
        if data is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        entry = _entry(file, data)
        headers = {"X-Repo-Commit": sha, "X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{_oid(entry)}"'}
        if "lfs" in entry:
            location = f"http://localhost:{self.server.server_port}/cdn/{_oid(entry)}"
            self._send(302, b"", {**headers, "Location": location})
        else:
            location = f"/api/resolve-cache/{kind}s/{org}/{name}/{sha}/{file}"
            self._send(307, b"", {**headers, "Location": location})

    def _resolve_cache(self, path: str) -> None:
        _, _, _, kinds, org, name, sha, *rest = path.split("/")
        repository = self._repository(kinds.removesuffix("s"), f"{org}/{name}")
        if repository is not None:
            file = "/".join(rest)
            data = repository.commits[sha][file]
            self._send(200, data, {"X-Repo-Commit": sha, "ETag": f'"{_oid(_entry(file, data))}"'})

    def _cdn(self, sha256: str, authorization: str) -> None:
        if authorization:
            self._error(400, "", "a token was sent to a host that it is not for")
            return
        for repository in self.server.repositories.values():
            for files in repository.commits.values():
                for data in files.values():
                    if hashlib.sha256(data).hexdigest() == sha256:
                        self._send(200, data, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})
                        return
        self._error(404, "", "no such object")

    def _repository(self, kind: str, name: str) -> Repository | None:
        repository = self.server.repositories.get((kind, name))
        allowed = self.headers.get("authorization") == f"Bearer {self.server.token}"
        if repository is not None and (repository.access != "private" or allowed):
            return repository
        # what is not there looks to a stranger like what may not be seen
        self._error(404 if allowed else 401, "RepoNotFound", "Repository not found")
        return None

    def _error(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        if self._fault.spoil:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = 0
        if status == 200 and "range" in self.headers:
            start = int(self.headers["range"].removeprefix("bytes=").split("-")[0])
            status = 206
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if not self._body:
            return
        after = self._fault.after
        self.wfile.write(data[start:] if after is None else data[start : start + after])
        if after is None:
            return
        self.wfile.flush()
        if self._fault.hang:
            self.server.hanging.set()
            self.server.release.wait()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _entry(path: str, data: bytes) -> dict[str, object]:
    """What a tree says of a file; `oid` is git's, of the pointer where the file is one of LFS."""
    sha256 = hashlib.sha256(data).hexdigest()
    lfs = len(data) >= _LFS
    stored = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\n".encode() if lfs else data
    blob = hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()
    entry: dict[str, object] = {"type": "file", "oid": blob, "size": len(data), "path": path}
    if lfs:
        entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": len(stored)}
    return entry


def _oid(entry: dict[str, object]) -> str:
    lfs = entry.get("lfs")
    return str(lfs["oid"] if isinstance(lfs, dict) else entry["oid"])


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A running server."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
